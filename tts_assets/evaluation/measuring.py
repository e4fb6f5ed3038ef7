"""Syntheses against their texts: what is heard in each, and every metric of it.

What takes time is kept in a cache by the digest of the audio: a report that is made again, or with
one metric more, asks the models only what is new.
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
from tts_assets.audio_models.whisper import packaged_model
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import digest_of
from tts_assets.core.hub import identity
from tts_assets.evaluation.metrics.metric import Metric, Setting, Unmeasured, Utterance, Values
from tts_assets.evaluation.metrics.registry import metrics_of
from tts_assets.evaluation.page import read_flac
from tts_assets.evaluation.results import SampleResult
from tts_assets.evaluation.suite import SuiteText

TRANSCRIPT = "transcript 1"  # the kind and version of a record
FAILED = "failed"  # the reason where a metric raised; what it said follows
DIGITS = 4  # what BLAS and ONNX change beyond them is no difference between two clips


@dataclass(frozen=True)
class SynthesizedUtterance:
    """One text as a model said it; no file where it said nothing at all."""

    text: SuiteText
    seed: int
    temperature: float | None
    audio: Path | None
    ended: bool


class MetricRunner:
    """Whisper and the metrics, each loaded when it is first needed. ``seconds``: spent in each."""

    def __init__(self, setting: Setting, cache: Path) -> None:
        self.config = setting.config
        self.setting = setting
        self.cache = RecordCache(cache)
        self.kinds = metrics_of(setting.config)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._metrics: dict[str, Metric] = {}
        self._ears: dict[str, Transcriber] = {}
        self._whisper = identity(self.config.whisper or str(packaged_model()))

    def measure(self, batch: Sequence[SynthesizedUtterance]) -> list[SampleResult]:
        """A row for each, in their order."""
        utterances = self._heard(batch)
        rows: list[SampleResult] = [row_of(*pair) for pair in zip(batch, utterances, strict=True)]
        for kind in self.kinds:
            started = time.monotonic()
            measured = self._measured(kind, utterances)
            self.seconds[kind.name] += time.monotonic() - started
            rows = [with_values(row, kind, m) for row, m in zip(rows, measured, strict=True)]
        return rows

    def _heard(self, batch: Sequence[SynthesizedUtterance]) -> list[Utterance]:
        """What can be heard, with the transcript aligned to the text."""
        started = time.monotonic()
        audio = [
            read_flac(s.audio) if s.audio else (np.zeros(0, np.float32), 16_000) for s in batch
        ]
        digests = [sha256_file(s.audio) if s.audio else "" for s in batch]
        ear = (self._whisper, self.config.beam_size, self.config.window_seconds)
        keys = [
            digest_of([TRANSCRIPT, *ear, spoken.text.language, digest])
            for spoken, digest in zip(batch, digests, strict=True)
        ]
        texts = self.cache.get(keys)
        new = {
            key: self._ear(spoken.text.language)([clip])[0]
            for key, spoken, clip in zip(keys, batch, audio, strict=True)
            if key not in texts
        }
        self.cache.put(new)
        texts |= new
        self.seconds["whisper"] += time.monotonic() - started
        return [
            Utterance(
                spoken.text,
                *clip,
                digest,
                spoken.ended,
                texts[key],
                match(spoken.text.text, texts[key], spoken.text.language),
            )
            for spoken, clip, digest, key in zip(batch, audio, digests, keys, strict=True)
        ]

    def _measured(
        self, kind: type[Metric], utterances: Sequence[Utterance]
    ) -> list[Values | Unmeasured]:
        """Values of one metric: from the cache, or measured together and kept."""
        metric = self._metric(kind)
        keys = [self._key(metric, utterance) for utterance in utterances]
        known = self.cache.get(key for key in keys if key)
        todo = [i for i, key in enumerate(keys) if key is None or key not in known]
        found = dict(zip(todo, guarded(metric, [utterances[i] for i in todo]), strict=True))
        for place, values in found.items():
            key = keys[place]
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

    def _ear(self, language: str) -> Transcriber:
        if language not in self._ears:
            self._ears[language] = Transcriber(
                self.config.whisper,
                language=language,
                beam_size=self.config.beam_size,
                window_seconds=self.config.window_seconds,
                batch_size=1,  # a clip's transcript depends on the clip alone
                threads=1,
            )
        return self._ears[language]


def guarded(metric: Metric, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
    """All at once; where that raises, one after the other, and only who raises has no value."""
    if not utterances:
        return []
    try:
        return checked(metric, utterances, metric.measure(utterances))
    except Exception as error:  # noqa: BLE001 - a plug-in may raise anything; it is told and counted
        if len(utterances) == 1:
            return [Unmeasured(f"{FAILED}: {type(error).__name__}: {error}")]
        return [one for utterance in utterances for one in guarded(metric, [utterance])]


def checked(
    metric: Metric, utterances: Sequence[Utterance], found: list[Values | Unmeasured]
) -> list[Values | Unmeasured]:
    """``found``, if it is a finite number a known column for each utterance."""
    if len(found) != len(utterances):
        raise ValueError(f"{len(found)} results for {len(utterances)} utterances")
    known = {column.name for column in metric.columns}
    for values in found:
        if isinstance(values, Unmeasured):
            continue
        if unknown := set(values) - known:
            raise ValueError(f"values of {sorted(unknown)}, which are no columns of it")
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"not a finite number in {values}")
    return found


def failed(values: Values | Unmeasured | str) -> bool:
    reason = values.reason if isinstance(values, Unmeasured) else values
    return isinstance(reason, str) and reason.startswith(FAILED)


def to_record(measured: Values | Unmeasured) -> Values | str:
    """What is kept. A model's numbers are rounded: those that need no model are exact."""
    if isinstance(measured, Unmeasured):
        return measured.reason
    return {name: round(value, DIGITS) for name, value in measured.items()}


def from_record(record: Values | str) -> Values | Unmeasured:
    return Unmeasured(record) if isinstance(record, str) else record


def row_of(spoken: SynthesizedUtterance, utterance: Utterance) -> SampleResult:
    matched = utterance.match
    return SampleResult(
        **spoken.text.model_dump(include={"id", "category", "text", "language"}),
        manner=spoken.text.manner,
        seed=spoken.seed,
        temperature=spoken.temperature,
        heard=utterance.heard,
        word_errors=matched.word_errors,
        words=matched.words,
        character_errors=matched.character_errors,
        characters=matched.characters,
        seconds=utterance.seconds,
        ended=spoken.ended,
        audio=f"audio/{spoken.audio.name}" if spoken.audio else None,
        values={},
    )


def with_values(
    row: SampleResult, metric: type[Metric], measured: Values | Unmeasured
) -> SampleResult:
    """The row with a metric's values, or with the reason why it has none."""
    if isinstance(measured, Unmeasured):
        return row.model_copy(update={"set_aside": row.set_aside | {metric.name: measured.reason}})
    return row.model_copy(update={"values": row.values | measured})
