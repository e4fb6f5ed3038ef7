"""Speech that a report scores, its transcripts, and every metric of it.

The speech comes from a serving model or from a folder of clips. The folder is the interface to
other TTS systems. It contains ``spoken.jsonl``, a list of :class:`Synthesis`, and ``audio/`` with
FLAC files of any sample rate.

Transcripts and metrics are cached by audio digest. A report that is computed again, or with an
additional metric, therefore runs the models only for what is new.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tts_assets.audio_models.transcription import (
    Transcriber,
    TransformersTranscriber,
    open_transcriber,
)
from tts_assets.audio_models.wer import match
from tts_assets.audio_models.whisper import NONE, packaged_model, whisper_identity
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import read_wave
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import Config, ConfigError, digest_of
from tts_assets.evaluation.config import BEAM_SIZE
from tts_assets.evaluation.metrics import (
    Metric,
    Setting,
    Unmeasured,
    Utterance,
    Values,
    metrics_of,
)
from tts_assets.evaluation.page import read_flac, write_flac
from tts_assets.evaluation.results import FAILED, SampleResult
from tts_assets.evaluation.suite import SuiteText
from tts_assets.serving.config import Voice
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.prompts import describe

TRANSCRIPT = "transcript 1"  # kind and version of a cache record
DIGITS = 4  # BLAS and ONNX change further digits between machines
SYNTHESES_FILE = "spoken.jsonl"
AUDIO_FOLDER = "audio"


@dataclass(frozen=True)
class SynthesizedUtterance:
    """A synthesis of a text; ``audio`` is None if the model generated no audio."""

    text: SuiteText
    seed: int
    temperature: float | None
    audio: Path | None
    ended: bool


class MetricRunner:
    """Runs the ASR model and the metrics, each loaded on first use.

    ``seconds``: computing time of each metric, without what the cache contained.
    """

    def __init__(self, setting: Setting, cache: Path) -> None:
        self.config = setting.config
        self.setting = setting
        self.cache = RecordCache(cache)
        self.kinds = metrics_of(setting.config)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._metrics: dict[str, Metric] = {}
        self._transcribers: dict[str, Transcriber | TransformersTranscriber] = {}
        self._whisper = (
            NONE if self._silent else whisper_identity(self.config.whisper or str(packaged_model()))
        )

    @property
    def _silent(self) -> bool:
        """Whether nothing is transcribed."""
        return self.config.whisper == NONE

    def measure(self, batch: Sequence[SynthesizedUtterance]) -> list[SampleResult]:
        """The result of each synthesis, in their order."""
        utterances = self._transcribed(batch)
        rows: list[SampleResult] = [row_of(*pair) for pair in zip(batch, utterances, strict=True)]
        for kind in self.kinds:
            started = time.monotonic()
            measured = self._measured(kind, utterances)
            self.seconds[kind.name] += time.monotonic() - started
            rows = [with_values(row, kind, m) for row, m in zip(rows, measured, strict=True)]
        return rows

    def _transcribed(self, batch: Sequence[SynthesizedUtterance]) -> list[Utterance]:
        """Audio and transcripts; the transcripts come from the cache where it has them."""
        started = time.monotonic()
        audio = [
            read_flac(s.audio) if s.audio else (np.zeros(0, np.float32), 16_000) for s in batch
        ]
        digests = [sha256_file(s.audio) if s.audio else "" for s in batch]
        asr = (self._whisper, BEAM_SIZE, self.config.window_seconds)
        keys = [
            digest_of([TRANSCRIPT, *asr, synthesis.text.language, digest])
            for synthesis, digest in zip(batch, digests, strict=True)
        ]
        if self._silent:
            # Without a transcript the text has no error; only its number of words is used.
            return [
                Utterance(s.text, *clip, digest, s.ended, "", match(s.text.text, s.text.text, tag))
                for s, clip, digest in zip(batch, audio, digests, strict=True)
                for tag in [s.text.language]
            ]
        transcripts = self.cache.get(keys)
        new = {
            key: self._transcriber(synthesis.text.language)([clip])[0]
            for key, synthesis, clip in zip(keys, batch, audio, strict=True)
            if key not in transcripts
        }
        self.cache.put(new)
        transcripts |= new
        self.seconds["whisper"] += time.monotonic() - started
        return [
            Utterance(
                synthesis.text,
                *clip,
                digest,
                synthesis.ended,
                transcripts[key],
                match(synthesis.text.text, transcripts[key], synthesis.text.language),
            )
            for synthesis, clip, digest, key in zip(batch, audio, digests, keys, strict=True)
        ]

    def _measured(
        self, kind: type[Metric], utterances: Sequence[Utterance]
    ) -> list[Values | Unmeasured]:
        """The values of one metric: from the cache, or measured together and then cached."""
        metric = self._metric(kind)
        keys = [self._key(metric, utterance) for utterance in utterances]
        known = self.cache.get(key for key in keys if key)
        todo = [i for i, key in enumerate(keys) if key is None or key not in known]
        found = dict(zip(todo, guarded(metric, [utterances[i] for i in todo]), strict=True))
        for index, values in found.items():
            key = keys[index]
            if key and not failed(values):
                known[key] = to_record(values)
        self.cache.put({key: known[key] for i in todo if (key := keys[i]) and key in known})
        return [
            from_record(known[key]) if key and key in known else found[i]
            for i, key in enumerate(keys)
        ]

    def _key(self, metric: Metric, utterance: Utterance) -> str | None:
        own = metric.key(utterance)
        if own is None:
            return None
        return digest_of([metric.name, metric.version, own, utterance.digest])

    def _metric(self, kind: type[Metric]) -> Metric:
        if kind.name not in self._metrics:
            self._metrics[kind.name] = kind(self.setting)
        return self._metrics[kind.name]

    def _transcriber(self, language: str) -> Transcriber | TransformersTranscriber:
        if language not in self._transcribers:
            self._transcribers[language] = open_transcriber(
                self.config.whisper,
                language=language,
                beam_size=BEAM_SIZE,
                window_seconds=self.config.window_seconds,
                batch_size=1,  # the transcript must depend on the clip alone
                threads=1,
            )
        return self._transcribers[language]


def guarded(metric: Metric, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
    """Measure all utterances at once; after an exception one by one.

    Only an utterance that raises alone has no value.
    """
    if not utterances:
        return []
    try:
        return checked(metric, utterances, metric.measure(utterances))
    except Exception as error:  # noqa: BLE001 - a plug-in may raise anything; the report counts it
        if len(utterances) == 1:
            return [Unmeasured(f"{FAILED}: {type(error).__name__}: {error}")]
        return [one for utterance in utterances for one in guarded(metric, [utterance])]


def checked(
    metric: Metric, utterances: Sequence[Utterance], found: list[Values | Unmeasured]
) -> list[Values | Unmeasured]:
    """``found``, if it has finite numbers of known columns for each utterance; else ValueError."""
    if len(found) != len(utterances):
        raise ValueError(f"{len(found)} results for {len(utterances)} utterances")
    known = {column.name for column in metric.columns}
    for values in found:
        if isinstance(values, Unmeasured):
            continue
        if unknown := set(values) - known:
            raise ValueError(f"values of {sorted(unknown)}, which are no columns of the metric")
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"not a finite number in {values}")
    return found


def failed(values: Values | Unmeasured) -> bool:
    """Whether the metric raised an exception."""
    return isinstance(values, Unmeasured) and values.reason.startswith(FAILED)


def to_record(measured: Values | Unmeasured) -> Values | str:
    """The cache record. Numbers of models are rounded; exact metrics are not cached."""
    if isinstance(measured, Unmeasured):
        return measured.reason
    return {name: round(value, DIGITS) for name, value in measured.items()}


def from_record(record: Values | str) -> Values | Unmeasured:
    """The inverse of :func:`to_record`."""
    return Unmeasured(record) if isinstance(record, str) else record


def row_of(synthesis: SynthesizedUtterance, utterance: Utterance) -> SampleResult:
    """The result of a synthesis, still without values."""
    matched = utterance.match
    return SampleResult(
        **synthesis.text.model_dump(include={"id", "category", "text", "language"}),
        manner=synthesis.text.manner,
        seed=synthesis.seed,
        temperature=synthesis.temperature,
        heard=utterance.transcript,
        word_errors=matched.word_errors,
        words=matched.words,
        character_errors=matched.character_errors,
        characters=matched.characters,
        seconds=utterance.seconds,
        ended=synthesis.ended,
        audio=f"audio/{synthesis.audio.name}" if synthesis.audio else None,
        values={},
    )


def with_values(
    row: SampleResult, metric: type[Metric], measured: Values | Unmeasured
) -> SampleResult:
    """The row with a metric's values, or with the reason why it has none."""
    if isinstance(measured, Unmeasured):
        return row.model_copy(update={"set_aside": row.set_aside | {metric.name: measured.reason}})
    return row.model_copy(update={"values": row.values | measured})


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

    def first_audio(self, batch: Batch) -> float | None:
        """The seconds until the first audio of the first text, streamed alone; None if unknown."""
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

    def first_audio(self, batch: Batch) -> float | None:
        started = time.monotonic()
        with closing(self.synthesizer.stream(self._line(*batch.requests[0]))) as chunks:
            found = any(len(chunk) for chunk in chunks)
            return time.monotonic() - started if found else None

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

    def first_audio(self, batch: Batch) -> float | None:
        return None
