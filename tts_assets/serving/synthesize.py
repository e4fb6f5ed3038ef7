"""Synthesize one text, or a file with one text a line::

    python -m tts_assets.serving.synthesize --model SERVING_MODEL --text "one two three" --out a.wav
    python -m tts_assets.serving.synthesize --model SERVING_MODEL --texts lines.txt --out folder/

``--voice`` selects a voice of the serving model. ``--prompt-wav`` and ``--prompt-text`` use any
clip as voice prompt. ``--voice-description``, ``--emotion`` and ``--style`` are for models that
were trained with such tags. ``--backend`` selects the engine: transformers, vLLM, or llama.cpp with
weights of 8 or 16 bits (``--weights``), whose GGUF file is kept in the user's cache. The same
arguments and ``--seed`` give the same bytes. ``--out -`` streams the samples of one text to stdout,
16-bit mono::

    python -m tts_assets.serving.synthesize --model … --text … --out - | aplay -f S16_LE -r 16000

Long texts are synthesized in pieces. A piece that is silent, loops or does not end is generated
once more with another seed. If the second attempt is faulty too, a message reports it. In a stream,
a piece is generated again only if none of its samples were written; a later loop ends the piece.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from tts_assets.core.artifacts import ArtifactError
from tts_assets.core.audio import BrokenAudio, read_wave
from tts_assets.core.config import ConfigError
from tts_assets.provenance.manifest import Signature
from tts_assets.serving.audio_formats import encode, pcm16, require_consents, signature
from tts_assets.serving.config import Quantization, ServerConfig, Voice
from tts_assets.serving.pieces import Fault
from tts_assets.serving.served_model import verify_model
from tts_assets.serving.synthesis import (
    Backend,
    ServedModel,
    Speech,
    SynthesisError,
    SynthesisLine,
    Synthesizer,
)
from tts_assets.serving.voices import make_voice
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.prompts import describe

OVERRIDES = (
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "frequency_penalty",
    "min_tokens",
    "max_tokens",
)
# Options of vLLM, as in ServerConfig.
CAPACITY: dict[str, type[Any]] = {"gpu_memory": float, "max_model_len": int}
# The engines that have each option.
ENGINES: dict[str, tuple[Backend, ...]] = {
    "gpu_memory": ("vllm",),
    "max_model_len": ("vllm", "llama.cpp"),
    "weights": ("llama.cpp",),
}
RETRIES = 1


def main(argv: list[str] | None = None) -> None:
    """Run the command. Exits with status 1 and a message for invalid input."""
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        card = verify_model(options.model)
        require_consents(card, options.model)
        signed = signature(options.model, card)
        synthesizer = Synthesizer.open(options.model, options.backend, **engine_options(options))
        voice = select_voice(synthesizer, options)
        synthesize(synthesizer, texts_of(options), voice, options, signed)
    except (SynthesisError, ArtifactError, ConfigError, BrokenAudio) as error:
        parser.exit(1, f"{error}\n")


def engine_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the engine that were given.

    Raises :class:`SynthesisError` for those of another engine, :class:`ConfigError` for values.
    """
    given = {name: value for name in ENGINES if (value := getattr(options, name)) is not None}
    for name in given:
        if options.backend not in ENGINES[name]:
            option, engines = f"--{name.replace('_', '-')}", " or ".join(ENGINES[name])
            raise SynthesisError(f"{option} needs --backend {engines}")
    ServerConfig.parse({name: given[name] for name in CAPACITY if name in given}, "command line")
    return given


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.serving.synthesize", description=(__doc__ or "").split("::")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a serving model")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--text", help="text to synthesize")
    texts.add_argument("--texts", type=Path, help="file with one text a line")
    parser.add_argument(
        "--out", type=Path, required=True, help=".wav file, folder for --texts, or -"
    )
    parser.add_argument("--voice", help="voice of the serving model")
    parser.add_argument("--prompt-wav", type=Path, help="clip of the voice to use as prompt")
    parser.add_argument("--prompt-text", help="transcript of the clip")
    for name in ("voice-description", "emotion", "style"):
        parser.add_argument(f"--{name}", default="", help="as in the training samples")
    parser.add_argument(
        "--language", default="", help="language of the texts, for numbers; default: the model's"
    )
    parser.add_argument("--backend", choices=get_args(Backend), default="transformers")
    parser.add_argument(
        "--weights", choices=get_args(Quantization), help="llama.cpp: 8 bits (default) or 16"
    )
    for name, kind in CAPACITY.items():
        about = ServerConfig.model_fields[name].description
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"vllm: {about}")
    parser.add_argument("--seed", type=int, help="default: the serving model's")
    for name in OVERRIDES:
        kind = type(SamplingConfig.model_fields[name].default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="default: the model's")
    return parser


def texts_of(options: argparse.Namespace) -> list[str]:
    """The text of ``--text``, or the non-empty lines of ``--texts``."""
    if options.text is not None:
        return [options.text]
    return [line.strip() for line in options.texts.read_text().splitlines() if line.strip()]


def select_voice(synthesizer: Synthesizer, options: argparse.Namespace) -> Voice | None:
    """The voice of ``--voice`` or ``--prompt-wav``; None: the voice that the model was trained on.

    Raises :class:`SynthesisError` for unknown voices and options that contradict each other.
    """
    if options.texts and str(options.out) == "-":
        raise SynthesisError("--out - streams one text: use --text, or a folder for --texts")
    if bool(options.prompt_wav) != bool(options.prompt_text):
        raise SynthesisError(
            "--prompt-wav and --prompt-text are needed together: a clip and its transcript"
        )
    if options.voice and options.prompt_wav:
        raise SynthesisError("use --voice or --prompt-wav, not both")
    if options.voice:
        return synthesizer.voice(options.voice)
    if options.prompt_wav:
        wave = read_wave(options.prompt_wav, synthesizer.codec.input_rate)
        return make_voice(synthesizer, wave, options.prompt_text, options.language)
    return None


def sampling_of(synthesizer: Synthesizer, options: argparse.Namespace) -> SamplingConfig:
    """The settings of the card with those of the command line. Raises :class:`ConfigError`."""
    given = {name: getattr(options, name) for name in (*OVERRIDES, "seed")}
    changes = {name: value for name, value in given.items() if value is not None}
    return SamplingConfig.parse(synthesizer.card.sampling.model_dump() | changes, "command line")


def synthesize(
    synthesizer: Synthesizer,
    texts: Sequence[str],
    voice: Voice | None,
    options: argparse.Namespace,
    signed: Signature | None,
) -> None:
    """Synthesize all texts and write the files. The third text of a list is ``0003.wav``.

    ``signed``: what is signed in the files; nothing in a stream.
    """
    sampling = sampling_of(synthesizer, options)
    description = describe(options.voice_description, options.emotion, options.style)
    lines = [
        SynthesisLine(text, voice, description=description, language=options.language)
        for text in texts
    ]
    if str(options.out) == "-":
        for wave in synthesizer.stream(lines[0], sampling, RETRIES, report_fault):
            sys.stdout.buffer.write(pcm16(wave))
            sys.stdout.buffer.flush()
        return
    pieces = sum(len(synthesizer.piece_requests(line, sampling)) for line in lines)
    with tqdm(total=pieces, desc="synthesis", unit="piece") as bar:
        speeches = synthesizer.synthesize(lines, sampling, progress=bar.update, retries=RETRIES)
    if options.text is not None:
        write(options.out, speeches[0], synthesizer, signed)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for number, speech in enumerate(speeches, start=1):
        write(options.out / f"{number:04d}.wav", speech, synthesizer, signed)


def report_fault(fault: Fault) -> None:
    """Print the fault of a streamed piece."""
    print(f"a piece was {fault}", file=sys.stderr)


def write(path: Path, speech: Speech, model: ServedModel, signed: Signature | None) -> None:
    """Write a wav file and print its length and fault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = model.sample_rate
    audio = encode(speech.wave, rate, "wav", model.provenance)
    path.write_bytes(signed.add(audio, "wav") if signed else audio)
    problem = f": {speech.fault}, also with another seed" if speech.fault else ""
    print(f"{path}: {len(speech.wave) / rate:.2f} s{problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
