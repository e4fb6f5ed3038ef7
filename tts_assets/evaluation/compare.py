"""Compares models on the same suite: paired differences with intervals, pages, a blind test.

Each bootstrap resample draws the same texts for both models of a pair, so that differences between
texts cancel out. The first model is the baseline.

All intervals of a comparison are corrected for their number; ``page.py`` says how.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tts_assets.audio_models.wer import Interval
from tts_assets.core.artifacts import ArtifactStore, Report
from tts_assets.core.config import canonical_json
from tts_assets.core.metadata import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.evaluation.blind_test import write_blind_test
from tts_assets.evaluation.config import EvaluationConfig, LineageRow, PlannedComparison
from tts_assets.evaluation.history import (
    WORDS,
    lineage,
    measured,
    measured_differently,
    path_to_storage,
)
from tts_assets.evaluation.metrics import Column, columns_of, metric_of_columns
from tts_assets.evaluation.page import (
    HERE,
    PAGE_BYTES,
    Changes,
    Embedder,
    RangeMark,
    SynthesisView,
    about_intervals,
    listed,
    percent,
    range_mark,
    render,
    scale_end,
    summary,
    synthesis_view,
    title_of,
)
from tts_assets.evaluation.report import caption
from tts_assets.evaluation.results import (
    COMPARISON_PAGE,
    FIGURES_FILE,
    REFERENCE_COLUMNS,
    SUMMARY_FILE,
    TEMPERATURES_FILE,
    Difference,
    Figures,
    SampleResult,
    by_category,
    difference,
    figures,
    grouped,
    read_samples,
    same_references,
)

ALL = "all"

Pairs = dict[tuple[str, str], Changes]
"""By (baseline, candidate)."""
ModelSamples = tuple[str, Path, Sequence[SampleResult]]
"""A model's name, its report's folder, and its samples in the same order as the other models'."""
TextRow = tuple[SampleResult, ...]
"""The syntheses of one text with one seed, one of each model."""


@dataclass(frozen=True)
class Model:
    """One of the models: its samples in the baseline's order, and its figures."""

    name: str
    folder: Path
    samples: list[SampleResult]
    figures: Figures


@dataclass(frozen=True)
class ComparisonRow:
    """The WER of each model on a category, and the differences from the first model."""

    category: str
    texts: int
    values: tuple[float, ...]
    changes: tuple[tuple[Difference, RangeMark], ...]


class ComparisonError(ValueError):
    """The reports are not comparable; the message says why."""


def comparison_of_reports(
    store: ArtifactStore, asked: PlannedComparison, reports: Mapping[str, Report], work: Path
) -> dict[str, Any]:
    """:func:`compare` of published reports by model."""
    return compare(
        {model: report.path for model, report in reports.items()},
        asked.evaluation,
        lineage(store, reports.values()),
        work / "result",
        asked.blind_trials,
        measured_differently(measured(report) for report in reports.values()),
        asked.decisive,
        path_to_storage(f"comparison/{asked.name}"),
    )


def compare(
    reports: Mapping[str, Path],
    config: EvaluationConfig,
    lineage: Sequence[LineageRow],
    result: Path,
    blind_trials: int = 10,
    measured_differently: Collection[str] = (),
    decisive: Sequence[str] = (),
    storage: str = "",
) -> dict[str, Any]:
    """Compare report folders by model name; returns the facts of the artifact.

    Writes page, figures, summary, notebook and blind test to ``result``. ``measured_differently``:
    metrics that the reports measure in different ways. ``decisive``: categories of the suite that
    decide on promotions. ``storage``: the relative path from the published page. Raises
    :class:`ComparisonError` if the WER is measured differently, or if the reports are not on the
    same texts.
    """
    columns, left_out = comparable(reports, config, measured_differently)
    models = read_models(reports, columns)
    intervals = count_intervals(models, columns)
    pairs: Pairs = {
        (a.name, b.name): changes_between(a, b, columns, intervals)
        for a, b in combinations(models, 2)
    }
    rows = category_rows(models, pairs)
    sentences = [
        *summary(pairs, list(reports), columns, decisive),
        about_intervals(intervals),
        *left_out,
    ]
    page = comparison_page(models, columns, pairs, rows, sentences, lineage, intervals, storage)
    (result / COMPARISON_PAGE).write_text(page)
    (result / SUMMARY_FILE).write_text("".join(f"- {sentence}\n" for sentence in sentences))
    samples = [(model.name, model.folder, model.samples) for model in models]
    wer_by_category = {row.category: row.values for row in rows}
    title = f"Listening: {', '.join(reports)}"
    write_notebook(result / NOTEBOOK_FILE, title, sections(samples, wer_by_category))
    write_blind_test(result, samples, blind_trials)
    facts = facts_of(models, pairs)
    found = numbers(models, pairs, rows, facts) | {"intervals": intervals}
    (result / FIGURES_FILE).write_text(canonical_json(found) + "\n")
    return facts


def comparable(
    reports: Mapping[str, Path], config: EvaluationConfig, measured_differently: Collection[str]
) -> tuple[list[Column], list[str]]:
    """The columns that are comparable, and sentences about the others.

    Raises :class:`ComparisonError` if the WER is not comparable.
    """
    if WORDS in measured_differently:
        raise ComparisonError(
            "the reports measure the WER differently, with another Whisper model, code version or "
            "suite: materialize all of them again"
        )
    metric, same = metric_of_columns(config), same_references(reports.values())
    kept: list[Column] = []
    other_model: list[Column] = []
    other_references: list[Column] = []
    for column in columns_of(config):
        if metric[column.name] in measured_differently:
            other_model.append(column)
        elif column.name in REFERENCE_COLUMNS and not same:
            other_references.append(column)
        else:
            kept.append(column)
    left_out = {
        "with another model or version; materialize all of them again.": other_model,
        "against other recordings; set [evaluation] reference_corpora.": other_references,
    }
    return kept, [not_compared(columns, how) for how, columns in left_out.items() if columns]


def not_compared(columns: Sequence[Column], how: str) -> str:
    """The sentence about columns that are left out."""
    named = listed([title_of(column) for column in columns])
    return f"{named[0].upper()}{named[1:]}: not compared: the reports measure it {how}"


def read_models(reports: Mapping[str, Path], columns: Sequence[Column]) -> list[Model]:
    """The models with their samples in the same order. Raises :class:`ComparisonError`."""
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
    """The candidate's samples in the baseline's order.

    Raises :class:`ComparisonError` if they are not of the same texts and seeds.
    """
    by_key = {sample.key: sample for sample in candidate}
    keys = [sample.key for sample in baseline]
    if differing := sorted(set(keys) ^ set(by_key), key=str):
        raise ComparisonError(
            f"the two reports are not of the same suite and seeds ({len(differing)} texts differ, "
            f"the first is {differing[0][0]!r}): materialize both reports again"
        )
    return [by_key[key] for key in keys]


def count_intervals(models: Sequence[Model], columns: Sequence[Column]) -> int:
    """The number of intervals in the comparison: of all columns and categories of all pairs."""
    categories = len(by_category(models[0].samples))
    return max(1, len(models) * (len(models) - 1) // 2 * (len(columns) + categories))


def changes_between(
    baseline: Model, candidate: Model, columns: Sequence[Column], intervals: int
) -> Changes:
    """The differences of all columns that both models have values of, at the corrected level."""
    wer = [column for column in columns if column.name == "wer"]
    groups = by_category(baseline.samples), by_category(candidate.samples)

    def known(found: Mapping[str, Difference | None]) -> dict[str, Difference]:
        return {name: change for name, change in found.items() if change is not None}

    return Changes(
        baseline.name,
        candidate.name,
        known(
            {
                column.name: difference(baseline.samples, candidate.samples, column, intervals)
                for column in columns
            }
        ),
        known(
            {
                category: difference(rows, groups[1][category], column, intervals)
                for column in wer
                for category, rows in groups[0].items()
            }
        ),
    )


def category_rows(models: Sequence[Model], pairs: Pairs) -> list[ComparisonRow]:
    """The WER of each category, then of all texts; no rows if it was not measured of all models."""
    if any("wer" not in model.figures.metrics for model in models):
        return []
    first = models[0]
    changes = [pairs[first.name, model.name] for model in models[1:]]
    each = [{**change.categories, ALL: change.columns["wer"]} for change in changes]
    end = scale_end([abs(x) for found in each for d in found.values() for x in (d.low, d.high)])
    return [
        ComparisonRow(
            category,
            change.texts,
            (change.baseline, *(found[category].candidate for found in each)),
            tuple((found[category], mark(found[category], end)) for found in each),
        )
        for category, change in each[0].items()
    ]


def mark(change: Difference, end: float) -> RangeMark:
    """A difference and its interval on a scale from ``-end`` to ``end``."""
    return range_mark(change.difference, Interval(change.low, change.high), -end, end)


def comparison_page(
    models: Sequence[Model],
    columns: Sequence[Column],
    pairs: Pairs,
    rows: Sequence[ComparisonRow],
    sentences: Sequence[str],
    lineage: Sequence[LineageRow],
    intervals: int,
    storage: str,
) -> str:
    """The HTML page."""
    others = [read_samples(model.folder, TEMPERATURES_FILE) for model in models]
    embed = Embedder(
        model.folder / sample.audio
        for model, own in zip(models, others, strict=True)
        for sample in [*model.samples, *own]
        if sample.audio
    )
    groups = side_by_side(models, [model.samples for model in models], embed)
    other_groups: dict[str, list[list[SynthesisView]]] = {}
    if all(others):
        aligned = [others[0], *(in_order(others[0], own) for own in others[1:])]
        other_groups = side_by_side(models, aligned, embed)
    return render(
        HERE / "comparison.html.j2",
        title=f"{', '.join(model.name for model in models)}: comparison",
        models=models,
        columns=[c for c in columns if all(c.name in m.figures.metrics for m in models)],
        changes={names: pair.columns for names, pair in pairs.items()},
        rows=rows,
        summary=sentences,
        intervals=intervals,
        groups=groups,
        others=other_groups,
        lossless=embed.lossless,
        lineage=lineage,
        storage=storage,
    )


def side_by_side(
    models: Sequence[Model], samples: Sequence[Sequence[SampleResult]], embed: Embedder
) -> dict[str, list[list[SynthesisView]]]:
    """By category, the syntheses of each text; texts with the most errors first."""
    groups = grouped((row[0].category, row) for row in zip(*samples, strict=True))
    return {
        category: [
            [synthesis_view(model.folder, s, embed) for model, s in zip(models, row, strict=True)]
            for row in sorted(rows, key=lambda row: -sum(s.values.get("wer", 0.0) for s in row))
        ]
        for category, rows in groups.items()
    }


def facts_of(models: Sequence[Model], pairs: Pairs) -> dict[str, Any]:
    """The WER of the first and the last model, and their difference, if it was measured."""
    first, last = models[0].name, models[-1].name
    wer = pairs[first, last].columns.get("wer")
    if wer is None:
        return {"baseline": first, "candidate": last}
    return {
        "baseline": first,
        "candidate": last,
        "wer_baseline": wer.baseline,
        "wer_candidate": wer.candidate,
        "wer_difference": wer.difference,
        "ci_low": wer.low,
        "ci_high": wer.high,
    }


def numbers(
    models: Sequence[Model], pairs: Pairs, rows: Sequence[ComparisonRow], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """``comparison.json``. ``categories``: the WER of the first and the last model."""
    return {
        **facts,
        "models": {model.name: model.figures for model in models},
        "differences": [
            {"models": list(names), **change.model_dump()}
            for names, changes in pairs.items()
            for change in changes.columns.values()
        ],
        "categories": {row.category: row.changes[-1][0] for row in rows},
    }


def sections(
    models: Sequence[ModelSamples], wer_by_category: Mapping[str, Sequence[float]]
) -> list[Section]:
    """The notebook: a section for each category with the texts that the models differ most in.

    ``wer_by_category``: a WER for each model.
    """
    rows = zip(*(samples for _, _, samples in models), strict=True)
    groups = grouped((row[0].category, row) for row in rows)
    room = PAGE_BYTES / len(groups)
    return [
        Section(
            section_title(category, models, wer_by_category.get(category, ())),
            clips_that_fit(models, rows, room),
        )
        for category, rows in groups.items()
    ]


def section_title(category: str, models: Sequence[ModelSamples], rates: Sequence[float]) -> str:
    """The category with the WER of each model, if it was measured."""
    if not rates:
        return category
    each = (f"{name} {percent(rate)}" for (name, _, _), rate in zip(models, rates, strict=True))
    return f"{category}: WER {', '.join(each)}"


def clips_that_fit(
    models: Sequence[ModelSamples], rows: Sequence[TextRow], room: float
) -> list[NotebookClip]:
    """The clips of the first texts whose audio has at most ``room`` bytes together.

    A text is shown with all of its clips or not at all.
    """
    shown: list[NotebookClip] = []
    for row in sorted(rows, key=wer_spread, reverse=True):
        clips = clips_of(models, row)
        room -= sum(clip.path.stat().st_size for clip in clips)
        if room < 0:
            break
        shown += clips
    return shown


def wer_spread(row: TextRow) -> tuple[float, float]:
    """The range of the models' WER, and then its sum."""
    rates = [sample.values.get("wer", 0.0) for sample in row]
    return max(rates) - min(rates), sum(rates)


def clips_of(models: Sequence[ModelSamples], row: TextRow) -> list[NotebookClip]:
    """A player for each model; the title names models that generated no audio."""
    each = list(zip(models, row, strict=True))
    silent = [name for (name, _, _), sample in each if sample.audio is None]
    text = row[0].text + (f" (no audio of {', '.join(silent)})" if silent else "")
    return [
        NotebookClip(text, f"{name}; {caption(sample)}", folder / sample.audio)
        for (name, folder, _), sample in each
        if sample.audio
    ]
