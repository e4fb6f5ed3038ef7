"""Sources of the speech that a report scores: a serving model, or a folder of clips.

The folder is the interface to other TTS systems. It contains ``spoken.jsonl``, a list of
:class:`Synthesis`, and ``audio/`` with FLAC files of any sample rate.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tts_assets.core.audio import read_wave
from tts_assets.core.config import Config, ConfigError
from tts_assets.evaluation.metric_runner import SynthesizedUtterance
from tts_assets.evaluation.page import write_flac
from tts_assets.evaluation.suite import SuiteText
from tts_assets.serving.config import Voice
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.prompts import describe

SYNTHESES_FILE = "spoken.jsonl"
AUDIO_FOLDER = "audio"


class Synthesis(Config):
    """A text of the suite, synthesized with one seed.

    ``audio``: the file in ``audio/``, None if the model generated no audio. ``ended``: the model
    ended the synthesis itself, before its limit.
    """

    id: str
    seed: int
    audio: str | None
    ended: bool = True


def clip_name(text: SuiteText, seed: int, temperature: float | None = None) -> str:
    """The file name of a synthesis, which is unique within a report."""
    return f"{text.id}-{seed}{'' if temperature is None else f'-t{temperature:g}'}.flac"


def write_syntheses(folder: Path, syntheses: Iterable[Synthesis]) -> None:
    """Write the list of a folder of clips."""
    lines = [json.dumps(one.model_dump(), ensure_ascii=False) + "\n" for one in syntheses]
    (folder / SYNTHESES_FILE).write_text("".join(lines))


def read_syntheses(folder: Path) -> dict[tuple[str, int], Synthesis]:
    """The list of a folder of clips, by text id and seed. Raises :class:`ConfigError`."""
    path = folder / SYNTHESES_FILE
    lines = [line for line in path.read_text().split("\n") if line]
    rows = [
        Synthesis.parse(json.loads(line), f"{path}:{n}") for n, line in enumerate(lines, start=1)
    ]
    return {(row.id, row.seed): row for row in rows}


@dataclass(frozen=True)
class Batch:
    """Texts that are synthesized together, each with every seed.

    ``temperature``: of sampling; None for that of the serving model.
    """

    texts: Sequence[SuiteText]
    seeds: tuple[int, ...]
    temperature: float | None = None

    @property
    def requests(self) -> list[tuple[SuiteText, int]]:
        """Text and seed of each synthesis."""
        return [(text, seed) for text in self.texts for seed in self.seeds]


class SpeechSource(Protocol):
    """Where the speech of a report comes from."""

    def synthesize(
        self, batch: Batch, folder: Path
    ) -> tuple[list[SynthesizedUtterance], float | None]:
        """Write clips to ``folder``.

        Returns them in the order of ``batch.requests``, and the seconds of computation if known.
        """
        ...


class ModelSource:
    """A serving model with its own sampling configuration."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        self.synthesizer = synthesizer
        self._voices: dict[Path, Voice] = {}

    def synthesize(
        self, batch: Batch, folder: Path
    ) -> tuple[list[SynthesizedUtterance], float | None]:
        lines = [self._line(text, seed) for text, seed in batch.requests]
        changes = {} if batch.temperature is None else {"temperature": batch.temperature}
        sampling = self.synthesizer.card.sampling.model_copy(update=changes)
        started = time.monotonic()
        speeches = self.synthesizer.synthesize(lines, sampling)
        elapsed = time.monotonic() - started
        utterances = []
        for (text, seed), speech in zip(batch.requests, speeches, strict=True):
            audio = None
            if len(speech.wave):
                audio = folder / clip_name(text, seed, batch.temperature)
                rate, provenance = self.synthesizer.sample_rate, self.synthesizer.provenance
                write_flac(audio, speech.wave, rate, provenance)
            utterances.append(
                SynthesizedUtterance(text, seed, batch.temperature, audio, speech.ended)
            )
        return utterances, elapsed

    def _line(self, text: SuiteText, seed: int) -> SynthesisLine:
        description = describe(text.voice_description, text.emotion, text.style)
        return SynthesisLine(text.text, self._voice(text), seed, description, text.language)

    def _voice(self, text: SuiteText) -> Voice | None:
        """The text's voice prompt as codes of the model's codec; None without a prompt."""
        if text.prompt_wav is None:
            return None
        if text.prompt_wav not in self._voices:
            wave = read_wave(text.prompt_wav, self.synthesizer.codec.input_rate)
            voice = self.synthesizer.new_voice(wave, text.prompt_text, text.language)
            self._voices[text.prompt_wav] = voice
        return self._voices[text.prompt_wav]


class RecordedSource:
    """A folder of clips, which are copied so that the report contains all of its audio."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.syntheses: Mapping[tuple[str, int], Synthesis] = read_syntheses(source)

    def synthesize(
        self, batch: Batch, folder: Path
    ) -> tuple[list[SynthesizedUtterance], float | None]:
        folder.mkdir(parents=True, exist_ok=True)
        utterances = []
        for text, seed in batch.requests:
            found = self.syntheses.get((text.id, seed))
            if found is None:
                raise ConfigError(
                    f"the text {text.id!r} was not synthesized with seed {seed}: materialize the "
                    "asset spoken/<recipe> again"
                )
            audio = None
            if found.audio is not None:
                audio = folder / clip_name(text, seed)
                shutil.copyfile(self.source / AUDIO_FOLDER / found.audio, audio)
            utterances.append(
                SynthesizedUtterance(text, seed, batch.temperature, audio, found.ended)
            )
        return utterances, None
