"""The results of an evaluation: a row a synthesis, and the figures of a set of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from tts_assets.audio_models.wer import difference_interval, rate_interval
from tts_assets.core.config import Config
from tts_assets.evaluation.metrics.metric import Column

SAMPLES_FILE = "samples.jsonl"
TEMPERATURES_FILE = "temperatures.jsonl"
REPORT_FILE = "report.json"
AGAINST_TARGET = ("speaker_similarity", "duration_ratio")  # columns that recordings decide, too
Item = TypeVar("Item")


class SampleResult(Config):
    """One synthesis of one text, heard and scored.

    ``audio`` is relative to the report's folder; None if the model said nothing at all.
    ``values`` has a number a column, ``set_aside`` by metric why it has none.
    """

    id: str
    category: str
    text: str
    language: str = "en"
    manner: str = Field("", description="emotion and style that were asked for")
    seed: int
    temperature: float | None = Field(None, description="none: that of all figures")
    heard: str
    word_errors: int
    words: int
    character_errors: int
    characters: int
    seconds: float
    ended: bool
    audio: str | None
    values: dict[str, float]
    set_aside: dict[str, str] = Field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, float | None]:
        """What was asked for: the same in two reports of the same suite."""
        return self.id, self.text, self.seed, self.temperature

    def weight(self, column: Column) -> float:
        return float(getattr(self, column.weight)) if column.weight else 1.0


class Figure(Config):
    """One column of a set of samples: total, 95 % interval, how many have a value and have not."""

    value: float
    low: float
    high: float
    count: int
    set_aside: int


class Figures(Config):
    """A set of samples in numbers; a column without any value is not among ``metrics``."""

    texts: int
    samples: int
    metrics: dict[str, Figure]


class Difference(Config):
    """One column of two models on the same texts: candidate minus baseline, 95 % interval."""

    column: str
    texts: int
    baseline: float
    candidate: float
    difference: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def figures(samples: Sequence[SampleResult], columns: Iterable[Column]) -> Figures:
    """The figures of ``samples``; intervals resample texts, not syntheses."""
    found = {column.name: figure(samples, column) for column in columns}
    return Figures(
        texts=len({sample.id for sample in samples}),
        samples=len(samples),
        metrics={name: value for name, value in found.items() if value is not None},
    )


def figure(samples: Sequence[SampleResult], column: Column) -> Figure | None:
    """None if no sample has a value."""
    sums = by_text(samples, column)
    if not sums:
        return None
    values, weights = zip(*sums.values(), strict=True)
    interval = rate_interval(values, weights)
    count = sum(column.name in sample.values for sample in samples)
    return Figure(
        value=rounded(sum(values) / sum(weights)),
        low=rounded(interval.low),
        high=rounded(interval.high),
        count=count,
        set_aside=len(samples) - count,
    )


def difference(
    baseline: Sequence[SampleResult], candidate: Sequence[SampleResult], column: Column
) -> Difference | None:
    """Paired over the texts of which both have values; None if there are none.

    A synthesis without a value takes its pair out, so that both totals are of the same.
    """
    known = [{s.key for s in rows if column.name in s.values} for rows in (baseline, candidate)]
    both = known[0] & known[1]
    a, b = (by_text([s for s in rows if s.key in both], column) for rows in (baseline, candidate))
    if not a:
        return None
    values_a, weights_a = zip(*a.values(), strict=True)
    values_b, weights_b = zip(*(b[text] for text in a), strict=True)
    interval = difference_interval(values_a, weights_a, values_b, weights_b)
    totals = sum(values_a) / sum(weights_a), sum(values_b) / sum(weights_b)
    return Difference(
        column=column.name,
        texts=len(a),
        baseline=rounded(totals[0]),
        candidate=rounded(totals[1]),
        difference=rounded(totals[1] - totals[0]),
        low=rounded(interval.low),
        high=rounded(interval.high),
    )


def by_text(samples: Iterable[SampleResult], column: Column) -> dict[str, tuple[float, float]]:
    """Weighted values and weights of each text, summed over its syntheses that have a value."""
    sums: dict[str, tuple[float, float]] = {}
    for sample in samples:
        if column.name in sample.values:
            weight = sample.weight(column)
            value, total = sums.get(sample.id, (0.0, 0.0))
            sums[sample.id] = value + sample.values[column.name] * weight, total + weight
    return sums


def rounded(value: float) -> float:
    """Six digits: sums in another order change the sixteenth, and a report keeps its bytes."""
    return round(value, 6)


def by_category(samples: Iterable[SampleResult]) -> dict[str, list[SampleResult]]:
    """Samples of each category, both in order of appearance."""
    return grouped((sample.category, sample) for sample in samples)


def by_manner(samples: Iterable[SampleResult]) -> dict[str, list[SampleResult]]:
    """Samples of each emotion and style that was asked for; none where none was."""
    return grouped((sample.manner, sample) for sample in samples if sample.manner)


def grouped(named: Iterable[tuple[str, Item]]) -> dict[str, list[Item]]:
    """The items of each name, both in order of appearance."""
    groups: dict[str, list[Item]] = {}
    for name, item in named:
        groups.setdefault(name, []).append(item)
    return groups


def read_target(folder: Path) -> str | None:
    """The digest of what a report's :data:`AGAINST_TARGET` are measured against; None in reports
    from before it was written."""
    target: str | None = json.loads((folder / REPORT_FILE).read_text()).get("target")
    return target


def same_target(folders: Iterable[Path]) -> bool:
    """Whether the :data:`AGAINST_TARGET` of all reports are measured against the same."""
    return len({read_target(folder) for folder in folders}) == 1


def write_samples(path: Path, samples: Iterable[SampleResult]) -> None:
    lines = [json.dumps(s.model_dump(), ensure_ascii=False, sort_keys=True) for s in samples]
    path.write_text("".join(line + "\n" for line in lines))


def read_samples(folder: Path, name: str = SAMPLES_FILE) -> list[SampleResult]:
    """The rows of a report's folder; none where it has no such file."""
    path = folder / name
    if not path.is_file():
        return []
    with path.open() as lines:
        return [
            SampleResult.parse(json.loads(line), f"{path}:{number}")
            for number, line in enumerate(lines, start=1)
        ]
