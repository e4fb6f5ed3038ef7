"""The effect of training: models of a voice, each compared with the model that it is trained from.

A *step* is a model with its base: an SFT recipe that continues another one, or GRPO and DPO with
their SFT recipe. The page states in words, for each suite and metric, whether the step helped, and
plays the syntheses that it made worst. Differences are paired over the texts of a suite; the
intervals of all steps, suites, metrics and categories are corrected for their number, as those of a
comparison are (``page.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tts_assets.core.artifacts import ArtifactStore, Report, TrainingEffect
from tts_assets.core.config import canonical_json
from tts_assets.core.metadata import Markdown, Metadata
from tts_assets.evaluation.compare import Model, changes_between, comparable, read_models
from tts_assets.evaluation.config import EvaluationConfig, LineageRow
from tts_assets.evaluation.history import lineage, measured, measured_differently, path_to_storage
from tts_assets.evaluation.metrics import Column
from tts_assets.evaluation.page import (
    HERE,
    SUMMARY_COLUMNS,
    WER,
    Changes,
    Embedder,
    SynthesisView,
    about_intervals,
    direction_of,
    is_relevant,
    pair_summary,
    render,
    synthesis_view,
)
from tts_assets.evaluation.results import (
    FEWEST_TEXTS,
    SUMMARY_FILE,
    Difference,
    Figure,
    SampleResult,
    by_category,
    figure,
    grouped,
)

EFFECT_PAGE, EFFECT_FILE = "effect.html", "effect.json"
REGRESSIONS = 5  # of each step on each suite
SAME = "no significant difference that matters"
FEW = f"fewer than {FEWEST_TEXTS} texts"
ASSESSMENTS = ("better", "worse", "other", SAME, FEW)

Steps = Mapping[str, str]
"""By model, its base; empty for a model without one. A base comes before its models."""


@dataclass(frozen=True)
class Cell:
    """A figure of a model, and how it differs from that of its base."""

    figure: Figure | None
    change: Difference | None
    assessment: str


@dataclass(frozen=True)
class Row:
    """A metric on all texts, or the WER of a category: a cell for each model."""

    title: str
    column: Column
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Regression:
    """A text that a model synthesizes worse than its base.

    ``decline``: the sum over the metrics of their decline, each divided by the smallest difference
    that matters. ``words`` names them.
    """

    before: SampleResult
    after: SampleResult
    decline: float
    words: str


@dataclass(frozen=True)
class SuiteReports:
    """The reports of all models on a suite, as folders by model; see ``compare`` for the others."""

    folders: Mapping[str, Path]
    config: EvaluationConfig
    measured_differently: Collection[str] = ()
    decisive: Sequence[str] = ()


def effect_of_reports(
    store: ArtifactStore,
    voice: str,
    steps: Steps,
    reports: Sequence[tuple[str, str, Report]],
    evaluation: EvaluationConfig,
    category: str,
    work: Path,
) -> dict[str, Any]:
    """:func:`write_effect` of published reports, given with suite and model.

    ``category``: of the suite, which decides on promotion, or empty.
    """
    groups = grouped((suite, (model, report)) for suite, model, report in reports)
    suites = {
        name: SuiteReports(
            {model: report.path for model, report in own},
            evaluation.for_suite(name),
            measured_differently(measured(report) for _, report in own),
            [category] if category else [],
        )
        for name, own in groups.items()
    }
    sources = lineage(store, [report for *_, report in reports])
    storage = path_to_storage(f"effect/{voice}")
    return write_effect(work / "result", voice, steps, suites, sources, storage)


@dataclass(frozen=True)
class SuiteEffect:
    """The effect of all steps on a suite. ``regressions``: by model; the worst first."""

    name: str
    models: Sequence[Model]
    columns: Sequence[Column]
    changes: Mapping[str, Changes]  # by model
    rows: Sequence[Row]
    sentences: Sequence[str]
    regressions: Mapping[str, Sequence[Regression]] = field(default_factory=dict)

    @property
    def shown(self) -> list[Row]:
        """The rows that some model has a figure of."""
        return [row for row in self.rows if any(cell.figure for cell in row.cells)]


def write_effect(
    result: Path,
    voice: str,
    steps: Steps,
    suites: Mapping[str, SuiteReports],
    lineage: Sequence[LineageRow] = (),
    storage: str = "",
) -> dict[str, Any]:
    """Write page, figures and summary of a voice to ``result``; returns the facts of the artifact.

    ``storage``: the relative path from the published page. Raises
    :class:`~tts_assets.evaluation.compare.ComparisonError` if the reports of a suite measure the
    WER differently, or are not on the same texts.
    """
    read = {}
    for name, reports in suites.items():
        columns, notes = comparable(reports.folders, reports.config, reports.measured_differently)
        read[name] = (read_models(reports.folders, columns), columns, notes)
    trained = [model for model, base in steps.items() if base]
    intervals = sum(
        len(trained) * (len(columns) + len(by_category(models[0].samples)))
        for models, columns, _ in read.values()
    )
    effects = [
        suite_effect(name, steps, *found, suites[name].decisive, intervals)
        for name, found in read.items()
    ]
    sentences = [step_sentence(model, steps[model], effects) for model in trained]
    sentences.append(about_intervals(intervals))
    page = effect_page(voice, steps, effects, sentences, lineage, storage)
    (result / EFFECT_PAGE).write_text(page)
    (result / SUMMARY_FILE).write_text("".join(f"- {one}\n" for one in sentences))
    (result / EFFECT_FILE).write_text(canonical_json(numbers(steps, effects, intervals)) + "\n")
    counts = Counter(words for model in trained for words in assessments(model, effects))
    return {"voice": voice, **{name: counts[name] for name in ("better", "worse")}}


def suite_effect(
    name: str,
    steps: Steps,
    models: Sequence[Model],
    columns: Sequence[Column],
    notes: Sequence[str],
    decisive: Sequence[str],
    intervals: int,
) -> SuiteEffect:
    """The figures, sentences and regressions of a suite. ``notes``: what is not compared."""
    by_name = {model.name: model for model in models}
    changes = {
        model: changes_between(by_name[base], by_name[model], columns, intervals)
        for model, base in steps.items()
        if base
    }
    told = [column for name in SUMMARY_COLUMNS for column in columns if column.name == name]
    return SuiteEffect(
        name,
        models,
        columns,
        changes,
        rows_of(models, columns, changes),
        [one for pair in changes.values() for one in pair_summary(pair, told, decisive)]
        + list(notes),
        {
            model: regressions(by_name[pair.baseline], by_name[model], told)
            for model, pair in changes.items()
        },
    )


def rows_of(
    models: Sequence[Model], columns: Sequence[Column], changes: Mapping[str, Changes]
) -> list[Row]:
    """A row for each metric, then for the WER of each category."""
    groups = {model.name: by_category(model.samples) for model in models}

    def row(title: str, column: Column, category: str = "") -> Row:
        cells = []
        for model in models:
            found: Mapping[str, Difference] = {}
            if (pair := changes.get(model.name)) is not None:
                found = pair.categories if category else pair.columns
            change = found.get(category or column.name)
            samples = groups[model.name][category] if category else model.samples
            cells.append(Cell(figure(samples, column), change, assessment(column, change)))
        return Row(title, column, tuple(cells))

    rows = [row(column.title, column) for column in columns]
    for column in columns:
        if column.name == WER:
            rows += [row(f"WER of {name}", column, name) for name in groups[models[0].name]]
    return rows


def assessment(column: Column, change: Difference | None) -> str:
    """One of :data:`ASSESSMENTS`; empty without a difference."""
    if change is None:
        return ""
    if change.texts < FEWEST_TEXTS:
        return FEW
    return direction_of(column, change) if is_relevant(column, change) else SAME


def assessments(model: str, effects: Sequence[SuiteEffect]) -> list[str]:
    """Those of a model in all rows of all suites."""
    return [
        cell.assessment
        for effect in effects
        for row in effect.rows
        for found, cell in zip(effect.models, row.cells, strict=True)
        if found.name == model and cell.assessment
    ]


def step_sentence(model: str, base: str, effects: Sequence[SuiteEffect]) -> str:
    """Whether the training of ``model`` from ``base`` helped, with the number of figures."""
    counts = Counter(assessments(model, effects))
    better, worse, total = counts["better"], counts["worse"], sum(counts.values())
    if counts[FEW] == total:
        result = f"cannot be assessed, because every figure has {FEW}"
    elif better and worse:
        result = "helped in part"
    elif better or worse:
        result = "helped" if better else "made the model worse"
    else:
        result = "had no measurable effect"
    return (
        f"{model}, trained from {base}: training {result}. Of {total} figures {better} are better "
        f"and {worse} worse."
    )


def regressions(base: Model, model: Model, columns: Sequence[Column]) -> list[Regression]:
    """The texts that ``model`` synthesizes worse than ``base`` by the most, the worst first."""
    compared = [column for column in columns if column.better and column.smallest]
    pairs = zip(base.samples, model.samples, strict=True)
    found = [regression(before, after, compared) for before, after in pairs]
    worse = sorted((one for one in found if one.decline > 0), key=lambda one: -one.decline)
    return worse[:REGRESSIONS]


def regression(before: SampleResult, after: SampleResult, columns: Sequence[Column]) -> Regression:
    """The decline of one text. Only declines of at least :attr:`Column.smallest` count."""
    decline, words = 0.0, []
    for column in columns:
        if column.name not in before.values or column.name not in after.values:
            continue
        was, now = before.values[column.name], after.values[column.name]
        worse = (now - was) * (1 if column.better == "low" else -1)
        if worse >= column.smallest:
            decline += worse / column.smallest
            words.append(f"{column.title} {column.text(now)} instead of {column.text(was)}")
    return Regression(before, after, decline, ", ".join(words))


def effect_page(
    voice: str,
    steps: Steps,
    effects: Sequence[SuiteEffect],
    sentences: Sequence[str],
    lineage: Sequence[LineageRow],
    storage: str,
) -> str:
    """The HTML page."""
    folders = [{model.name: model.folder for model in effect.models} for effect in effects]
    embed = Embedder(
        folder[name] / sample.audio
        for folder, effect in zip(folders, effects, strict=True)
        for model, found in effect.regressions.items()
        for one in found
        for name, sample in ((steps[model], one.before), (model, one.after))
        if sample.audio
    )

    def views(folder: Mapping[str, Path], model: str, one: Regression) -> list[SynthesisView]:
        pairs = ((steps[model], one.before), (model, one.after))
        return [synthesis_view(folder[name], sample, embed) for name, sample in pairs]

    listening = {
        effect.name: {
            model: [(one, views(folder, model, one)) for one in found]
            for model, found in effect.regressions.items()
        }
        for folder, effect in zip(folders, effects, strict=True)
    }
    return render(
        HERE / "effect.html.j2",
        title=f"{voice}: did training help?",
        voice=voice,
        steps=steps,
        effects=effects,
        summary=sentences,
        listening=listening,
        columns={column.name: column for effect in effects for column in effect.columns}.values(),
        lossless=embed.lossless,
        lineage=lineage,
        storage=storage,
    )


def numbers(steps: Steps, effects: Sequence[SuiteEffect], intervals: int) -> dict[str, Any]:
    """``effect.json``, the content of the page for programs."""
    return {
        "bases": dict(steps),
        "intervals": intervals,
        "suites": {
            effect.name: {
                "models": {model.name: model.figures for model in effect.models},
                "differences": [
                    {
                        "model": model.name,
                        "title": row.title,
                        "assessment": cell.assessment,
                        **cell.change.model_dump(),
                    }
                    for row in effect.rows
                    for model, cell in zip(effect.models, row.cells, strict=True)
                    if cell.change
                ],
                "regressions": [
                    {"model": model, "id": r.after.id, "seed": r.after.seed, "decline": r.decline}
                    for model, found in effect.regressions.items()
                    for r in found
                ],
            }
            for effect in effects
        },
    }


def describe_effect(effect: TrainingEffect) -> Metadata:
    """Metadata of the asset: summary and page."""
    summary = Markdown((effect.path / SUMMARY_FILE).read_text())
    return {"summary": summary, "page": effect.path / EFFECT_PAGE}
