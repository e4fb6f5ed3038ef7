"""Two models on the same suite: who makes fewer errors, and is the difference more than luck?

The pairs are texts: each bootstrap resample draws the same texts for both models, so that what
makes a text hard cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts_assets.config import Config, canonical_json
from tts_assets.evaluation.config import LineageRow
from tts_assets.evaluation.page import Heard, RangeMark, heard, range_mark, render, scale_end
from tts_assets.evaluation.results import (
    SampleResult,
    by_category,
    counts_by_text,
    figures,
    read_samples,
)
from tts_assets.hearing.text_match import Interval, difference_interval

PAGE_FILE = "comparison.html"
FIGURES_FILE = "comparison.json"
ALL = "all"


class Difference(Config):
    """Word error rates of a set of texts; negative differences favour the candidate."""

    category: str
    texts: int
    baseline: float
    candidate: float
    difference: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the 95 % interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Pair:
    """The same text and seed, said by both."""

    baseline: Heard
    candidate: Heard


@dataclass(frozen=True)
class Row:
    difference: Difference
    mark: RangeMark


class ComparisonError(ValueError):
    """Two reports that cannot be compared: the message says why."""


def compare(
    baseline: Path,
    candidate: Path,
    names: tuple[str, str],
    language: str,
    lineage: Sequence[LineageRow],
    result: Path,
) -> dict[str, Any]:
    """Compare the report folders and write page and numbers; returns the artifact's facts."""
    before, after = paired(read_samples(baseline), read_samples(candidate))
    differences = all_differences(before, after)
    total = differences[-1]
    pairs = [
        Pair(heard(baseline, a, language), heard(candidate, b, language))
        for a, b in zip(before, after, strict=True)
    ]
    groups = {
        category: [pair for pair in pairs if pair.baseline.sample.category == category]
        for category in by_category(before)
    }
    page = comparison_page(names, differences, groups, lineage)
    (result / PAGE_FILE).write_text(page)
    facts = {
        "baseline": names[0],
        "candidate": names[1],
        "wer_baseline": total.baseline,
        "wer_candidate": total.candidate,
        "wer_difference": total.difference,
        "ci_low": total.low,
        "ci_high": total.high,
    }
    values = {**facts, "categories": {d.category: d for d in differences}}
    (result / FIGURES_FILE).write_text(canonical_json(values) + "\n")
    return facts


def paired(
    baseline: Sequence[SampleResult], candidate: Sequence[SampleResult]
) -> tuple[list[SampleResult], list[SampleResult]]:
    """Both in the baseline's order; raises :class:`ComparisonError` unless they said the same."""
    after = {(sample.id, sample.text, sample.seed): sample for sample in candidate}
    before = {(sample.id, sample.text, sample.seed): sample for sample in baseline}
    if differing := sorted(set(before) ^ set(after)):
        raise ComparisonError(
            f"the two reports are not of the same suite and seeds ({len(differing)} texts differ, "
            f"the first is {differing[0][0]!r}): materialize both reports again"
        )
    return list(before.values()), [after[key] for key in before]


def all_differences(
    before: Sequence[SampleResult], after: Sequence[SampleResult]
) -> list[Difference]:
    """One for each category, then one for all texts."""
    candidates = by_category(after)
    each = [
        difference(category, rows, candidates[category])
        for category, rows in by_category(before).items()
    ]
    return [*each, difference(ALL, before, after)]


def difference(
    category: str, before: Sequence[SampleResult], after: Sequence[SampleResult]
) -> Difference:
    interval = difference_interval(*counts_by_text(before), *counts_by_text(after))
    a, b = figures(before), figures(after)
    return Difference(
        category=category,
        texts=a.texts,
        baseline=a.wer,
        candidate=b.wer,
        difference=b.wer - a.wer,
        low=interval.low,
        high=interval.high,
    )


def comparison_page(
    names: tuple[str, str],
    differences: Sequence[Difference],
    groups: dict[str, list[Pair]],
    lineage: Sequence[LineageRow],
) -> str:
    end = scale_end([abs(bound) for d in differences for bound in (d.low, d.high)])
    rows = [
        Row(d, range_mark(d.difference, Interval(d.low, d.high), -end, end)) for d in differences
    ]
    return render(
        "comparison.html.j2",
        title=f"{names[0]} and {names[1]}: comparison",
        baseline=names[0],
        candidate=names[1],
        total=differences[-1],
        verdict=verdict(differences[-1]),
        rows=rows,
        groups=groups,
        end=end,
        lineage=lineage,
    )


def verdict(total: Difference) -> str:
    """What the interval allows to say, in a sentence."""
    if not total.certain:
        return "The interval includes zero: with these texts the two cannot be told apart."
    better = "fewer" if total.difference < 0 else "more"
    return f"The interval leaves out zero: the candidate makes {better} word errors."
