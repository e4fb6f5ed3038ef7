"""The results of an evaluation: a row a synthesis, and the figures of a set of rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from tts_assets.config import Config
from tts_assets.hearing.text_match import rate_interval

SAMPLES_FILE = "samples.jsonl"
REPORT_FILE = "report.json"
WORST_MOS, WORST_SIMILARITY = 1.0, 0.0  # what a set gets in which no clip could be scored


class SampleResult(Config):
    """One synthesis of one text, heard and scored.

    ``audio`` is relative to the report's folder; None if the model said nothing at all. The
    scores are None where a clip is too short, or holds too little speech, to be scored.
    """

    id: str
    category: str
    text: str
    seed: int
    heard: str
    word_errors: int
    words: int
    character_errors: int
    characters: int
    seconds: float
    ended: bool
    dnsmos_p808: float | None
    dnsmos_overall: float | None
    speaker_similarity: float | None
    audio: str | None

    @property
    def wer(self) -> float:
        return self.word_errors / self.words


class Figures(Config):
    """A set of samples in numbers. Rates are sums of errors over sums of words."""

    texts: int
    samples: int
    wer: float
    wer_low: float
    wer_high: float
    cer: float
    perfect: float
    dnsmos_p808: float
    dnsmos_overall: float
    speaker_similarity: float
    seconds: float
    unscored: int
    cut_off: int


def figures(samples: Sequence[SampleResult]) -> Figures:
    """The figures of ``samples``; the interval resamples texts, not syntheses."""
    errors, words = counts_by_text(samples)
    interval = rate_interval(errors, words)
    return Figures(
        texts=len(errors),
        samples=len(samples),
        wer=sum(errors) / sum(words),
        wer_low=interval.low,
        wer_high=interval.high,
        cer=sum(s.character_errors for s in samples) / sum(s.characters for s in samples),
        perfect=fmean(s.word_errors == 0 for s in samples),
        dnsmos_p808=_mean((s.dnsmos_p808 for s in samples), WORST_MOS),
        dnsmos_overall=_mean((s.dnsmos_overall for s in samples), WORST_MOS),
        speaker_similarity=_mean((s.speaker_similarity for s in samples), WORST_SIMILARITY),
        seconds=sum(s.seconds for s in samples),
        unscored=sum(s.dnsmos_p808 is None or s.speaker_similarity is None for s in samples),
        cut_off=sum(not s.ended for s in samples),
    )


def counts_by_text(samples: Sequence[SampleResult]) -> tuple[list[int], list[int]]:
    """Word errors and words of each text, summed over its syntheses, in order of appearance."""
    errors: dict[str, int] = defaultdict(int)
    words: dict[str, int] = defaultdict(int)
    for sample in samples:
        errors[sample.id] += sample.word_errors
        words[sample.id] += sample.words
    return list(errors.values()), list(words.values())


def by_category(samples: Iterable[SampleResult]) -> dict[str, list[SampleResult]]:
    """Samples of each category, both in order of appearance."""
    groups: dict[str, list[SampleResult]] = {}
    for sample in samples:
        groups.setdefault(sample.category, []).append(sample)
    return groups


def write_samples(path: Path, samples: Iterable[SampleResult]) -> None:
    lines = [json.dumps(s.model_dump(), ensure_ascii=False, sort_keys=True) for s in samples]
    path.write_text("".join(line + "\n" for line in lines))


def read_samples(folder: Path) -> list[SampleResult]:
    """The rows of a report's folder."""
    path = folder / SAMPLES_FILE
    return [
        SampleResult.parse(json.loads(line), f"{path}:{number}")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
    ]


def _mean(values: Iterable[float | None], otherwise: float) -> float:
    scored = [value for value in values if value is not None]
    return fmean(scored) if scored else otherwise
