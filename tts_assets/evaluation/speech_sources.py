"""A suite that was said elsewhere: clips and a list of them, which a report scores as any other.

The interface between the reports and whatever speaks: a folder with ``spoken.jsonl`` and
``audio/``, FLAC of any rate.

Who says the texts of a batch: a serving model, or somebody who has said them already.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tts_assets.core.audio import read_wave
from tts_assets.core.config import Config, ConfigError
from tts_assets.evaluation.config import EvaluationProgram
from tts_assets.evaluation.measuring import SynthesizedUtterance
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.suite import SuiteText
from tts_assets.serving.config import Voice
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.prompts import describe

SPOKEN_FILE = "spoken.jsonl"
AUDIO_FOLDER = "audio"


class Synthesis(Config):
    """One text of the suite with one seed; ``audio``: its file in ``audio/``, none if nothing was
    said; ``ended``: by the model, and not by a limit."""

    id: str
    seed: int
    audio: str | None
    ended: bool = True


def clip_name(text: SuiteText, seed: int, temperature: float | None = None) -> str:
    return f"{text.id}-{seed}{'' if temperature is None else f'-t{temperature:g}'}.flac"


def write_sayings(folder: Path, sayings: Iterable[Synthesis]) -> None:
    lines = [json.dumps(saying.model_dump(), ensure_ascii=False) + "\n" for saying in sayings]
    (folder / SPOKEN_FILE).write_text("".join(lines))


def read_sayings(folder: Path) -> dict[tuple[str, int], Synthesis]:
    """By text and seed. Raises :class:`ConfigError` naming the line."""
    path = folder / SPOKEN_FILE
    lines = [line for line in path.read_text().split("\n") if line]
    rows = [
        Synthesis.parse(json.loads(line), f"{path}:{n}") for n, line in enumerate(lines, start=1)
    ]
    return {(row.id, row.seed): row for row in rows}


def saying_of(sayings: dict[tuple[str, int], Synthesis], text: SuiteText, seed: int) -> Synthesis:
    try:
        return sayings[text.id, seed]
    except KeyError:
        raise ConfigError(
            f"the text {text.id!r} was not said with seed {seed}: have the suite said again"
        ) from None


@dataclass(frozen=True)
class Batch:
    """Texts that are said together, each with every seed, at one temperature (none: as set)."""

    texts: Sequence[SuiteText]
    seeds: tuple[int, ...]
    temperature: float | None = None

    @property
    def asked(self) -> list[tuple[SuiteText, int]]:
        return [(text, seed) for text in self.texts for seed in self.seeds]


class SpeechSource(Protocol):
    def say(self, batch: Batch, folder: Path) -> tuple[list[SynthesizedUtterance], float | None]:
        """Clips below ``folder`` in the order of ``batch.asked``; the seconds of work, if known."""
        ...


def talker_of(program: EvaluationProgram, device: str) -> SpeechSource:
    if program.spoken is not None:
        return RecordedSource(program.spoken)
    assert program.serving_model is not None  # the configuration has one of the two
    return ModelSource(program, Synthesizer.open(program.serving_model, device=device))


class ModelSource:
    """A serving model with the voices and the sampling of the configuration."""

    def __init__(self, program: EvaluationProgram, synthesizer: Synthesizer) -> None:
        self.config = program.evaluation
        self.synthesizer = synthesizer
        self._voices: dict[Path, Voice] = {}

    def say(self, batch: Batch, folder: Path) -> tuple[list[SynthesizedUtterance], float | None]:
        lines = [self.line(text, seed) for text, seed in batch.asked]
        started = time.monotonic()
        speeches = self.synthesizer.synthesize(lines, self.sampling(batch.temperature))
        elapsed = time.monotonic() - started
        spoken = []
        for (text, seed), speech in zip(batch.asked, speeches, strict=True):
            audio = None
            if len(speech.wave):
                audio = folder / clip_name(text, seed, batch.temperature)
                rate, provenance = self.synthesizer.sample_rate, self.synthesizer.provenance
                write_flac(audio, speech.wave, rate, provenance)
            spoken.append(SynthesizedUtterance(text, seed, batch.temperature, audio, speech.ended))
        return spoken, elapsed

    def line(self, text: SuiteText, seed: int) -> SynthesisLine:
        description = describe(text.voice_description, text.emotion, text.style)
        return SynthesisLine(text.text, self.voice(text), seed, description, text.language)

    def sampling(self, temperature: float | None) -> SamplingConfig:
        usual = self.config.sampling or self.synthesizer.card.sampling
        changes = {} if temperature is None else {"temperature": temperature}
        return usual.model_copy(update=changes)

    def voice(self, text: SuiteText) -> Voice | None:
        """The text's prompt, in codes of the model's codec; else the voice that is set."""
        if text.prompt_wav is None:
            name = self.config.voice
            return self.synthesizer.voice(name) if name else None
        if text.prompt_wav not in self._voices:
            wave = read_wave(text.prompt_wav, self.synthesizer.codec.input_rate)
            voice = self.synthesizer.new_voice(wave, text.prompt_text, text.language)
            self._voices[text.prompt_wav] = voice
        return self._voices[text.prompt_wav]


class RecordedSource:
    """What was said before: its clips are copied, so that a report stands alone."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.sayings = read_sayings(source)

    def say(self, batch: Batch, folder: Path) -> tuple[list[SynthesizedUtterance], float | None]:
        folder.mkdir(parents=True, exist_ok=True)
        spoken = []
        for text, seed in batch.asked:
            saying = saying_of(self.sayings, text, seed)
            audio = None
            if saying.audio is not None:
                audio = folder / clip_name(text, seed)
                shutil.copyfile(self.source / AUDIO_FOLDER / saying.audio, audio)
            spoken.append(SynthesizedUtterance(text, seed, batch.temperature, audio, saying.ended))
        return spoken, None
