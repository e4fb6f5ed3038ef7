"""The results of an evaluation: one row for each synthesis, and statistics of sets of rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from tts_assets.audio_models.wer import difference_interval, rate_interval
from tts_assets.core.artifacts import Comparison, Report
from tts_assets.core.config import Config
from tts_assets.core.metadata import NOTEBOOK_FILE, Link, Markdown, Metadata, Table, bars, image
from tts_assets.evaluation.metrics import Column

SAMPLES_FILE = "samples.jsonl"
TEMPERATURES_FILE = "temperatures.jsonl"
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"
COMPARISON_PAGE, BLIND_PAGE = "comparison.html", "blind.html"
SUMMARY_FILE = "summary.md"
REFERENCE_COLUMNS = ("speaker_similarity", "duration_ratio")  # they depend on reference recordings
FIGURES_FILE = "comparison.json"
HEADLINE = ("wer", "speaker_similarity", "dnsmos_p808")  # figures at the top of an asset page
WORST = 10  # syntheses on an asset page
FEWEST_TEXTS = 10  # bootstrap intervals of fewer texts are not reliable
FAILED = "failed"  # how the reason starts if a metric raised; the exception follows
Item = TypeVar("Item")


class SampleResult(Config):
    """One synthesis of one text, transcribed and scored.

    ``heard`` is the ASR transcript, empty if nothing is transcribed. ``audio`` is relative to the
    report's folder, None if the model generated no audio. ``values`` has a number for each column.
    ``set_aside`` has, by metric, the reason for a missing value.
    """

    id: str
    category: str
    text: str
    language: str = "en"
    manner: str = Field("", description="emotion and style of the text")
    seed: int
    temperature: float | None = Field(None, description="None: that of the main figures")
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
    def transcribed(self) -> bool:
        """Whether there is an ASR transcript."""
        return "wer" in self.values

    @property
    def key(self) -> tuple[str, str, int, float | None]:
        """The request: the same in two reports on the same suite."""
        return self.id, self.text, self.seed, self.temperature

    @property
    def anchor(self) -> str:
        """The id of this synthesis in the page of its report."""
        at = "" if self.temperature is None else f"-{self.temperature:g}"
        return re.sub(r"[^\w.-]+", "_", f"{self.id}-{self.seed}{at}")

    def weight(self, column: Column) -> float:
        """The weight of this synthesis in the total of ``column``."""
        return float(getattr(self, column.weight)) if column.weight else 1.0


class Figure(Config):
    """One column of a set of syntheses: total, 95 % interval, and how many have (no) value."""

    value: float
    low: float
    high: float
    count: int
    set_aside: int


class Figures(Config):
    """All columns of a set of syntheses. ``metrics`` has no column without any value."""

    texts: int
    samples: int
    metrics: dict[str, Figure]


class Difference(Config):
    """One column of two models on the same texts: candidate minus baseline, and its interval."""

    column: str
    texts: int
    baseline: float
    candidate: float
    difference: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def figures(samples: Sequence[SampleResult], columns: Iterable[Column]) -> Figures:
    """The figures of ``samples``. Intervals resample texts, not syntheses."""
    found = {column.name: figure(samples, column) for column in columns}
    return Figures(
        texts=len({sample.id for sample in samples}),
        samples=len(samples),
        metrics={name: value for name, value in found.items() if value is not None},
    )


def figure(samples: Sequence[SampleResult], column: Column) -> Figure | None:
    """The total of one column; None if no synthesis has a value."""
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
    baseline: Sequence[SampleResult],
    candidate: Sequence[SampleResult],
    column: Column,
    intervals: int = 1,
) -> Difference | None:
    """The paired difference over the texts that have values of both; None if there are none.

    A synthesis without a value excludes its counterpart, so that both totals cover the same.
    ``intervals``: the number of intervals that hold together with a probability of 95 %.
    """
    known = [{s.key for s in rows if column.name in s.values} for rows in (baseline, candidate)]
    both = known[0] & known[1]
    a, b = (by_text([s for s in rows if s.key in both], column) for rows in (baseline, candidate))
    if not a:
        return None
    values_a, weights_a = zip(*a.values(), strict=True)
    values_b, weights_b = zip(*(b[text] for text in a), strict=True)
    level = 1 - 0.05 / intervals
    interval = difference_interval(values_a, weights_a, values_b, weights_b, level=level)
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
    """The weighted value and the weight of each text, summed over its syntheses with a value."""
    sums: dict[str, tuple[float, float]] = {}
    for sample in samples:
        if column.name in sample.values:
            weight = sample.weight(column)
            value, total = sums.get(sample.id, (0.0, 0.0))
            sums[sample.id] = value + sample.values[column.name] * weight, total + weight
    return sums


def rounded(value: float) -> float:
    """Six digits: another order of summation changes the sixteenth, but not the report."""
    return round(value, 6)


def by_category(samples: Iterable[SampleResult]) -> dict[str, list[SampleResult]]:
    """The syntheses of each category, both in order of appearance."""
    return grouped((sample.category, sample) for sample in samples)


def by_manner(samples: Iterable[SampleResult]) -> dict[str, list[SampleResult]]:
    """The syntheses of each emotion and style; texts without either are left out."""
    return grouped((sample.manner, sample) for sample in samples if sample.manner)


def grouped(named: Iterable[tuple[str, Item]]) -> dict[str, list[Item]]:
    """The items of each name, both in order of appearance."""
    groups: dict[str, list[Item]] = {}
    for name, item in named:
        groups.setdefault(name, []).append(item)
    return groups


def read_references_digest(folder: Path) -> str | None:
    """The digest of a report's reference recordings; None in old reports, which have none."""
    digest: str | None = json.loads((folder / REPORT_FILE).read_text()).get("target")
    return digest


def same_references(folders: Iterable[Path]) -> bool:
    """Whether :data:`REFERENCE_COLUMNS` of all reports refer to the same recordings."""
    return len({read_references_digest(folder) for folder in folders}) == 1


def write_samples(path: Path, samples: Iterable[SampleResult]) -> None:
    """Write one JSON object for each synthesis."""
    lines = [json.dumps(s.model_dump(), ensure_ascii=False, sort_keys=True) for s in samples]
    path.write_text("".join(line + "\n" for line in lines))


def read_samples(folder: Path, name: str = SAMPLES_FILE) -> list[SampleResult]:
    """The rows of a report's folder; empty if there is no such file."""
    path = folder / name
    if not path.is_file():
        return []
    with path.open() as lines:
        return [
            SampleResult.parse(json.loads(line), f"{path}:{number}")
            for number, line in enumerate(lines, start=1)
        ]


def worst_first(samples: Sequence[SampleResult]) -> list[SampleResult]:
    """Sorted by WER, then DNSMOS P.808, then speaker similarity; a missing value is the worst."""

    def order(sample: SampleResult) -> tuple[float, float, float]:
        values = sample.values
        return (
            -values.get("wer", 0.0),
            values.get("dnsmos_p808", float("-inf")),
            values.get("speaker_similarity", float("-inf")),
        )

    return sorted(samples, key=order)


def describe_report(report: Report) -> Metadata:
    """Metadata: figures with intervals, page and notebook, and the worst syntheses with audio."""
    written = json.loads((report.path / REPORT_FILE).read_text())
    columns = columns_of_report(written)
    total = {name: Figure.parse(one, name) for name, one in written["total"]["metrics"].items()}
    plot = bars(report.facts.wer_by_category, x_label="WER, %")
    return {
        **{name: with_interval(columns[name], total[name]) for name in HEADLINE if name in total},
        "page": report.path / REPORT_PAGE,
        "listen": report.path / NOTEBOOK_FILE,
        "worst": worst_table(report.path, columns),
        "figures": Table(
            [
                {"metric": columns[name].title, "total": with_interval(columns[name], one)}
                for name, one in total.items()
            ]
        ),
        "wer_plot": image("WER by category", plot),
    }


def columns_of_report(written: Mapping[str, Any]) -> dict[str, Column]:
    """The columns of a ``report.json`` by name."""
    return {
        name: Column(name, **{"digits": 2, **values}) for name, values in written["columns"].items()
    }


def with_interval(column: Column, figure: Figure) -> str:
    """A total and its interval, such as ``8.5 % (6.1 to 11.2)``."""
    interval = f"{column.number(figure.low)} to {column.number(figure.high)}"
    return f"{column.text(figure.value)} ({interval})"


def worst_table(folder: Path, columns: Mapping[str, Column]) -> Table:
    """The worst syntheses of a report: links to their rows in the page and to their audio."""
    worst = worst_first([s for s in read_samples(folder) if s.temperature is None])[:WORST]
    return Table([worst_row(folder, sample, columns) for sample in worst])


def worst_row(
    folder: Path, sample: SampleResult, columns: Mapping[str, Column]
) -> dict[str, str | Link]:
    """A row of :func:`worst_table`."""
    numbers = {
        columns[name].title: columns[name].number(sample.values[name])
        for name in HEADLINE
        if name in sample.values
    }
    return {
        "utterance": Link(sample.id, folder / REPORT_PAGE, sample.anchor),
        "audio": Link("play", folder / sample.audio) if sample.audio else "none",
        **numbers,
        "text": sample.text,
        "ASR transcript": sample.heard,
    }


def describe_comparison(comparison: Comparison) -> Metadata:
    """Metadata: the change of the WER, the summary, page, listening notebook, and blind test."""
    facts: Any = comparison.facts
    shown: Metadata = {}
    if facts.wer_difference is not None:
        wer = Column("wer", "WER", "", unit="%", digits=1)
        rates = f"{wer.text(facts.wer_candidate)} instead of {wer.text(facts.wer_baseline)}"
        interval = wer.signed_range(facts.ci_low, facts.ci_high)
        shown = {"wer": f"{rates} ({wer.signed(facts.wer_difference)}, {interval})"}
    return {
        **shown,
        "summary": Markdown((comparison.path / SUMMARY_FILE).read_text()),
        "page": comparison.path / COMPARISON_PAGE,
        "listen": comparison.path / NOTEBOOK_FILE,
        "blind_test": comparison.path / BLIND_PAGE,
    }
