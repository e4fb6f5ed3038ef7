"""Any number of models on the same suite: who is better in what, and is it more than luck?

The pairs are texts: each bootstrap resample draws the same texts for both models, so that what
makes a text hard cancels out. The first model is the baseline.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tts_assets.audio_models.wer import Interval
from tts_assets.core.config import canonical_json
from tts_assets.core.notebook import NOTEBOOK_FILE, write_notebook
from tts_assets.evaluation.blind_test import write_blind_test
from tts_assets.evaluation.config import EvaluationConfig, LineageRow
from tts_assets.evaluation.history import WORDS
from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.metrics.registry import columns_of, metric_of_columns
from tts_assets.evaluation.page import (
    HERE,
    Embedder,
    Heard,
    RangeMark,
    heard,
    range_mark,
    render,
    scale_end,
)
from tts_assets.evaluation.results import (
    AGAINST_TARGET,
    TEMPERATURES_FILE,
    Difference,
    Figures,
    SampleResult,
    by_category,
    difference,
    figures,
    grouped,
    read_samples,
    same_target,
)
from tts_assets.evaluation.summary import listed, sections, summary

PAGE_FILE = "comparison.html"
FIGURES_FILE = "comparison.json"
SUMMARY_FILE = "summary.md"
ALL = "all"

Pairs = dict[tuple[str, str], dict[str, Difference]]
"""By (baseline, candidate) and column."""


@dataclass(frozen=True)
class Model:
    """One of the models: its samples in the baseline's order, and its figures."""

    name: str
    folder: Path
    samples: list[SampleResult]
    figures: Figures


@dataclass(frozen=True)
class ComparisonRow:
    """The word errors of a kind of text: of each model, and the change from the first."""

    category: str
    texts: int
    values: tuple[float, ...]
    changes: tuple[tuple[Difference, RangeMark], ...]


class ComparisonError(ValueError):
    """Reports that cannot be compared: the message says why."""


def compare(
    reports: Mapping[str, Path],
    config: EvaluationConfig,
    lineage: Sequence[LineageRow],
    result: Path,
    blind_trials: int = 10,
    apart: Collection[str] = (),
) -> dict[str, Any]:
    """Compare the report folders; write pages, notebook, numbers; returns the artifact's facts.

    ``apart``: metrics that the reports measure differently. Raises :class:`ComparisonError` where
    word errors are among them.
    """
    columns, left_out = comparable(reports, config, apart)
    models = read_models(reports, columns)
    pairs: Pairs = {
        (a.name, b.name): differences(a.samples, b.samples, columns)
        for a, b in combinations(models, 2)
    }
    rows = category_rows(models, columns)
    said = summary([(model.name, model.figures) for model in models], pairs, columns) + left_out
    page = comparison_page(models, columns, pairs, rows, said, lineage)
    (result / PAGE_FILE).write_text(page)
    (result / SUMMARY_FILE).write_text("".join(f"- {sentence}\n" for sentence in said))
    said_by = [(model.name, model.folder, model.samples) for model in models]
    heading = f"Listening: {', '.join(reports)}"
    errors = {row.category: row.values for row in rows}
    write_notebook(result / NOTEBOOK_FILE, heading, sections(said_by, errors))
    write_blind_test(result, said_by, blind_trials)
    facts = facts_of(models, pairs)
    (result / FIGURES_FILE).write_text(canonical_json(numbers(models, pairs, rows, facts)) + "\n")
    return facts


def comparable(
    reports: Mapping[str, Path], config: EvaluationConfig, apart: Collection[str]
) -> tuple[list[Column], list[str]]:
    """The columns that all reports measure alike, against the same; a sentence on the others."""
    if WORDS in apart:
        raise ComparisonError(
            "the reports heard words differently, with another Whisper, version of the code or "
            "suite: materialize all of them again"
        )
    metric, alike = metric_of_columns(config), same_target(reports.values())
    kept: list[Column] = []
    by_others: list[Column] = []
    elsewhere: list[Column] = []
    for column in columns_of(config):
        if metric[column.name] in apart:
            by_others.append(column)
        elif column.name in AGAINST_TARGET and not alike:
            elsewhere.append(column)
        else:
            kept.append(column)
    left_out = {
        "with another model or version; materialize all of them again.": by_others,
        "against other recordings; set [evaluation] target.": elsewhere,
    }
    return kept, [not_compared(columns, how) for how, columns in left_out.items() if columns]


def not_compared(columns: Sequence[Column], how: str) -> str:
    named = listed([column.title.lower() for column in columns]).capitalize()
    return f"{named}: not compared: the reports measure it {how}"


def read_models(reports: Mapping[str, Path], columns: Sequence[Column]) -> list[Model]:
    """Raises :class:`ComparisonError` unless all said the same texts with the same seeds."""
    models: list[Model] = []
    for name, folder in reports.items():
        samples = read_samples(folder)
        if models:
            samples = in_order(models[0].samples, samples)
        models.append(Model(name, folder, samples, figures(samples, columns)))
    return models


def in_order(
    baseline: Sequence[SampleResult], candidate: Sequence[SampleResult]
) -> list[SampleResult]:
    """The candidate's samples in the baseline's order."""
    after = {sample.key: sample for sample in candidate}
    before = [sample.key for sample in baseline]
    if differing := sorted(set(before) ^ set(after), key=str):
        raise ComparisonError(
            f"the two reports are not of the same suite and seeds ({len(differing)} texts differ, "
            f"the first is {differing[0][0]!r}): materialize both reports again"
        )
    return [after[key] for key in before]


def differences(
    baseline: Sequence[SampleResult], candidate: Sequence[SampleResult], columns: Sequence[Column]
) -> dict[str, Difference]:
    """By column, of those of which both have values."""
    found = {column.name: difference(baseline, candidate, column) for column in columns}
    return {name: pair for name, pair in found.items() if pair is not None}


def category_rows(models: Sequence[Model], columns: Sequence[Column]) -> list[ComparisonRow]:
    """The word errors of each kind, then of all texts."""
    (words,) = (column for column in columns if column.name == "wer")
    groups = [by_category(model.samples) | {ALL: model.samples} for model in models]
    found = []
    for category, first in groups[0].items():
        changes = [difference(first, group[category], words) for group in groups[1:]]
        known = [change for change in changes if change is not None]
        values = tuple(figures(group[category], [words]).metrics["wer"].value for group in groups)
        found.append((category, len({s.id for s in first}), values, known))
    end = scale_end([abs(x) for *_, known in found for d in known for x in (d.low, d.high)])
    return [
        ComparisonRow(category, texts, values, tuple((d, mark(d, end)) for d in known))
        for category, texts, values, known in found
    ]


def mark(change: Difference, end: float) -> RangeMark:
    return range_mark(change.difference, Interval(change.low, change.high), -end, end)


def comparison_page(
    models: Sequence[Model],
    columns: Sequence[Column],
    pairs: Pairs,
    rows: Sequence[ComparisonRow],
    said: Sequence[str],
    lineage: Sequence[LineageRow],
) -> str:
    others = [read_samples(model.folder, TEMPERATURES_FILE) for model in models]
    every = [
        model.folder / sample.audio
        for model, own in zip(models, others, strict=True)
        for sample in [*model.samples, *own]
        if sample.audio
    ]
    embed = Embedder(every)
    said_by = [side_by_side(models, [model.samples for model in models], embed)]
    if all(others):
        aligned = [others[0], *(in_order(others[0], own) for own in others[1:])]
        said_by.append(side_by_side(models, aligned, embed))
    return render(
        HERE / "comparison.html.j2",
        title=f"{', '.join(model.name for model in models)}: comparison",
        models=models,
        columns=[c for c in columns if all(c.name in m.figures.metrics for m in models)],
        pairs=pairs,
        rows=rows,
        summary=said,
        groups=said_by[0],
        others=said_by[1] if len(said_by) > 1 else {},
        lossless=embed.lossless,
        lineage=lineage,
    )


def side_by_side(
    models: Sequence[Model], samples: Sequence[Sequence[SampleResult]], embed: Embedder
) -> dict[str, list[list[Heard]]]:
    """By category, what each model made of each text; the text with most errors first."""
    groups = grouped((row[0].category, row) for row in zip(*samples, strict=True))
    return {
        category: [
            [heard(model.folder, s, embed) for model, s in zip(models, row, strict=True)]
            for row in sorted(rows, key=lambda row: -sum(s.values["wer"] for s in row))
        ]
        for category, rows in groups.items()
    }


def facts_of(models: Sequence[Model], pairs: Pairs) -> dict[str, Any]:
    first, last = models[0].name, models[-1].name
    words = pairs[first, last]["wer"]
    return {
        "baseline": first,
        "candidate": last,
        "wer_baseline": words.baseline,
        "wer_candidate": words.candidate,
        "wer_difference": words.difference,
        "ci_low": words.low,
        "ci_high": words.high,
    }


def numbers(
    models: Sequence[Model], pairs: Pairs, rows: Sequence[ComparisonRow], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """``comparison.json``: ``categories`` are word errors, of the first and the last model."""
    return {
        **facts,
        "models": {model.name: model.figures for model in models},
        "differences": [
            {"models": list(names), **change.model_dump()}
            for names, changes in pairs.items()
            for change in changes.values()
        ],
        "categories": {row.category: row.changes[-1][0] for row in rows},
    }
