"""Speak one text or a list of them::

    python -m tts_assets.serving.synthesize --model SERVING_MODEL --text "one two three" --out a.wav
    python -m tts_assets.serving.synthesize --model SERVING_MODEL --texts lines.txt --out folder/

``--voice`` takes a voice registered in the serving model; ``--prompt-wav`` with ``--prompt-text``
takes any clip. ``--voice-description``, ``--emotion`` and ``--style`` tell a model that was
trained on such tags how to speak. The same arguments and ``--seed`` give the same bytes.
``--out -`` writes the samples of one text to stdout while they are made, 16-bit mono::

    python -m tts_assets.serving.synthesize --model … --text … --out - | aplay -f S16_LE -r 16000

Long texts are spoken in pieces. A piece that is silent, loops or does not end is drawn once more
with another seed; if it stays so, that is told. Streamed, that is so while nothing of it was
heard; later, a loop ends the piece.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tts_assets.core.artifacts import ArtifactError
from tts_assets.core.audio import BrokenAudio, read_wave, write_speech
from tts_assets.core.config import ConfigError
from tts_assets.serving.config import ServerConfig, Voice
from tts_assets.serving.pieces import Fault
from tts_assets.serving.streaming import pcm16, refuse_ended
from tts_assets.serving.synthesis import (
    ServedModel,
    Speech,
    SynthesisError,
    SynthesisLine,
    Synthesizer,
    read_card,
)
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
# Of vLLM, as the server has them.
ROOM: dict[str, type[Any]] = {"gpu_memory": float, "max_model_len": int}
RETRIES = 1


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    try:
        refuse_ended(read_card(options.model))
        given = {name: value for name in ROOM if (value := getattr(options, name)) is not None}
        if given and options.backend != "vllm":
            raise SynthesisError("--gpu-memory and --max-model-len go with --backend vllm")
        ServerConfig.parse(given, "command line")
        synthesizer = Synthesizer.open(options.model, options.backend, **given)
        voice = chosen_voice(synthesizer, options)
        speak(synthesizer, texts_of(options), voice, options)
    except (SynthesisError, ArtifactError, ConfigError, BrokenAudio) as error:
        parser.exit(1, f"{error}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.serving.synthesize", description=(__doc__ or "").split("::")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a serving model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="what to say")
    what.add_argument("--texts", type=Path, help="a file with a text a line")
    parser.add_argument(
        "--out", type=Path, required=True, help=".wav file, folder for --texts, or -"
    )
    parser.add_argument("--voice", help="a voice registered in the serving model")
    parser.add_argument("--prompt-wav", type=Path, help="a clip of the voice to imitate")
    parser.add_argument("--prompt-text", help="what the clip says")
    for name in ("voice-description", "emotion", "style"):
        parser.add_argument(f"--{name}", default="", help="as in the training samples")
    parser.add_argument("--language", default="en", help="of the texts: how figures are read")
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers")
    for name, kind in ROOM.items():
        about = ServerConfig.model_fields[name].description
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"vllm: {about}")
    parser.add_argument("--seed", type=int, help="default: the serving model's")
    for name in OVERRIDES:
        kind = type(SamplingConfig.model_fields[name].default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="default: the model's")
    return parser


def texts_of(options: argparse.Namespace) -> list[str]:
    if options.text is not None:
        return [options.text]
    return [line.strip() for line in options.texts.read_text().splitlines() if line.strip()]


def chosen_voice(synthesizer: Synthesizer, options: argparse.Namespace) -> Voice | None:
    """The registered voice, the clip's, or None for the model's own."""
    if options.texts and str(options.out) == "-":
        raise SynthesisError("--out - streams one text: give --text, or a folder for --texts")
    if bool(options.prompt_wav) != bool(options.prompt_text):
        raise SynthesisError("--prompt-wav and --prompt-text go together: the clip and its words")
    if options.voice and options.prompt_wav:
        raise SynthesisError("give --voice or --prompt-wav, not both")
    if options.voice:
        return synthesizer.voice(options.voice)
    if options.prompt_wav:
        wave = read_wave(options.prompt_wav, synthesizer.codec.input_rate)
        return synthesizer.new_voice(wave, options.prompt_text, options.language)
    return None


def sampling_of(synthesizer: Synthesizer, options: argparse.Namespace) -> SamplingConfig:
    given = {name: getattr(options, name) for name in (*OVERRIDES, "seed")}
    changes = {name: value for name, value in given.items() if value is not None}
    return SamplingConfig.parse(synthesizer.card.sampling.model_dump() | changes, "command line")


def speak(
    synthesizer: Synthesizer,
    texts: Sequence[str],
    voice: Voice | None,
    options: argparse.Namespace,
) -> None:
    """Say all texts and write the files; the third of a list is ``0003.wav``."""
    sampling = sampling_of(synthesizer, options)
    description = describe(options.voice_description, options.emotion, options.style)
    lines = [
        SynthesisLine(text, voice, description=description, language=options.language)
        for text in texts
    ]
    if str(options.out) == "-":
        for wave in synthesizer.stream(lines[0], sampling, RETRIES, tell):
            sys.stdout.buffer.write(pcm16(wave))
            sys.stdout.buffer.flush()
        return
    pieces = sum(len(synthesizer.parts(line, sampling)) for line in lines)
    with tqdm(total=pieces, desc="synthesis", unit="piece") as bar:
        spoken = synthesizer.say(lines, sampling, progress=bar.update, retries=RETRIES)
    if options.text is not None:
        write(options.out, spoken[0], synthesizer)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for number, speech in enumerate(spoken, start=1):
        write(options.out / f"{number:04d}.wav", speech, synthesizer)


def tell(fault: Fault) -> None:
    """Of a piece that was streamed; what nobody has heard was drawn again."""
    print(f"a piece was {fault}", file=sys.stderr)


def write(path: Path, speech: Speech, model: ServedModel) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = model.sample_rate
    write_speech(path, speech.wave, rate, model.provenance)
    problem = f": {speech.fault}, also with another seed" if speech.fault else ""
    print(f"{path}: {len(speech.wave) / rate:.2f} s{problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
