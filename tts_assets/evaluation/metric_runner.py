"""Transcribes syntheses and measures every metric of them, with a cache by audio digest.

A report that is computed again, or with an additional metric, therefore runs the models only for
what is new.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_assets.audio_models.transcription import Transcriber
from tts_assets.audio_models.wer import match
from tts_assets.audio_models.whisper import NONE, packaged_model, whisper_identity
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import digest_of
from tts_assets.evaluation.config import BEAM_SIZE
from tts_assets.evaluation.metrics.metric import (
    Metric,
    Setting,
    Unmeasured,
    Utterance,
    Values,
    metrics_of,
)
from tts_assets.evaluation.page import read_flac
from tts_assets.evaluation.results import FAILED, SampleResult
from tts_assets.evaluation.suite import SuiteText

TRANSCRIPT = "transcript 1"  # kind and version of a cache record
DIGITS = 4  # BLAS and ONNX change further digits between machines


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
        self._transcribers: dict[str, Transcriber] = {}
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

    def _transcriber(self, language: str) -> Transcriber:
        if language not in self._transcribers:
            self._transcribers[language] = Transcriber(
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
