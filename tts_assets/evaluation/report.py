"""``report.html``: one self-contained page of figures, players, errors, history and lineage.

How the values of a column are spread over the utterances: a histogram as SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_assets.audio_models.wer import Interval
from tts_assets.core.config import canonical_json, digest_of
from tts_assets.core.notebook import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.evaluation.config import MAIN, EvaluationProgram
from tts_assets.evaluation.corpus_voices import target_digest
from tts_assets.evaluation.history import Past, past
from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.metrics.registry import columns_of, metrics_of, not_given
from tts_assets.evaluation.page import (
    HERE,
    PAGE_BYTES,
    Embedder,
    RangeMark,
    heard,
    percent,
    range_mark,
    render,
    scale_end,
)
from tts_assets.evaluation.results import (
    REPORT_FILE,
    SAMPLES_FILE,
    TEMPERATURES_FILE,
    Figures,
    SampleResult,
    by_category,
    by_manner,
    figures,
    write_samples,
)

CLASSES = 20
WIDTH, HEIGHT = 240, 64


@dataclass(frozen=True)
class Bar:
    """A class of values: its place in the picture, and what it says in words."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Distribution:
    """``bars`` of a picture of WIDTH x HEIGHT; ``median`` is a place in it."""

    column: Column
    bars: tuple[Bar, ...]
    low: str
    high: str
    median: float
    label: str


def distributions(samples: Sequence[SampleResult], columns: Iterable[Column]) -> list[Distribution]:
    """Of each column that is shown and has values that differ."""
    found = []
    for column in columns:
        values = [s.values[column.name] for s in samples if column.name in s.values]
        if column.shown and len(set(values)) > 1:
            found.append(distribution(values, column))
    return found


def distribution(values: Sequence[float], column: Column) -> Distribution:
    counts, edges = np.histogram(values, bins=CLASSES)
    low, high, middle = float(edges[0]), float(edges[-1]), float(np.median(values))
    step = WIDTH / CLASSES
    tallest = int(counts.max())
    bars = tuple(
        Bar(
            x=round(place * step + 0.5, 1),
            y=round(HEIGHT - HEIGHT * count / tallest, 1),
            width=step - 1,
            height=round(HEIGHT * count / tallest, 1),
            label=f"{count} from {column.text(edges[place])} to {column.text(edges[place + 1])}",
        )
        for place, count in enumerate(counts.tolist())
        if count
    )
    label = (
        f"{column.title} of {len(values)} syntheses: {column.text(low)} to {column.text(high)}, "
        f"half of them below {column.text(middle)}"
    )
    place = round(WIDTH * (middle - low) / (high - low), 1)
    return Distribution(column, bars, column.text(low), column.text(high), place, label)


PAGE_FILE = "report.html"
ALL = "all"


@dataclass(frozen=True)
class ReportRow:
    """A line of the table of kinds; ``mark`` is that of the word errors."""

    name: str
    figures: Figures
    mark: RangeMark


@dataclass(frozen=True)
class Findings:
    """What the page and ``report.json`` tell: ``samples`` at the temperature of all figures,
    ``others`` at others."""

    samples: Sequence[SampleResult]
    others: Sequence[SampleResult]
    by_kind: Mapping[str, Figures]
    by_manner: Mapping[str, Figures]
    by_temperature: Mapping[float, Figures]
    history: Sequence[Past]


def write_report(folder: Path, program: EvaluationProgram, said: Sequence[SampleResult]) -> None:
    """Write rows, figures, page and notebook into ``folder``, which holds the audio already."""
    samples = [sample for sample in said if sample.temperature is None]
    others = [sample for sample in said if sample.temperature is not None]
    write_samples(folder / SAMPLES_FILE, samples)
    if others:
        write_samples(folder / TEMPERATURES_FILE, others)
    found = findings(program, samples, others)
    write_figures(folder / REPORT_FILE, program, found)
    (folder / PAGE_FILE).write_text(report_page(folder, program, found))
    title = f"Listening: {program.name}"
    write_notebook(folder / NOTEBOOK_FILE, title, sections(folder, samples, found.by_kind))


def findings(
    program: EvaluationProgram, samples: Sequence[SampleResult], others: Sequence[SampleResult]
) -> Findings:
    columns = columns_of(program.evaluation)

    def all_figures(groups: Mapping[str, Sequence[SampleResult]]) -> dict[str, Figures]:
        return {name: figures(rows, columns) for name, rows in groups.items()}

    return Findings(
        samples,
        others,
        by_kind=all_figures({**by_category(samples), ALL: samples}),
        by_manner=all_figures(by_manner(samples)),
        by_temperature=by_temperature(others, columns),
        history=past(samples, program.earlier, columns),
    )


def report_page(folder: Path, program: EvaluationProgram, found: Findings) -> str:
    total = found.by_kind[ALL]
    columns = [c for c in columns_of(program.evaluation) if c.name in total.metrics]
    named = worst_first(found.samples)
    embed = Embedder([folder / s.audio for s in [*named, *found.others] if s.audio])
    manners = {**found.by_manner, ALL: total} if found.by_manner else {}
    tables = (found.by_kind, manners)
    end = scale_end([row.metrics["wer"].high for table in tables for row in table.values()])
    rows, manner_rows = (table_rows(table, end) for table in tables)
    suite = "" if program.suite_name == MAIN else program.suite_name
    return render(
        HERE / "report.html.j2",
        title=f"{program.name}: listening report",
        name=program.name,
        suite=suite,
        whisper=program.evaluation.whisper or "tiny.en",
        total=total,
        columns=columns,
        rows=rows,
        manners=manner_rows,
        heard=[heard(folder, sample, embed) for sample in named],
        others=found.by_temperature,
        other_heard=[heard(folder, sample, embed) for sample in found.others],
        lossless=embed.lossless,
        distributions=distributions(found.samples, columns),
        history=found.history,
        not_given=not_given(program.evaluation),
        reasons=reasons(found.samples),
        end=end,
        lineage=program.lineage,
    )


def table_rows(table: Mapping[str, Figures], end: float) -> list[ReportRow]:
    """The lines of a table, with marks on a scale that ends at ``end``."""
    rows = []
    for name, found in table.items():
        wer = found.metrics["wer"]
        mark = range_mark(wer.value, Interval(wer.low, wer.high), 0.0, end)
        rows.append(ReportRow(name, found, mark))
    return rows


def worst_first(samples: Sequence[SampleResult]) -> list[SampleResult]:
    """By word errors, then by naturalness, then by likeness; who has no value is worst."""

    def badness(sample: SampleResult) -> tuple[float, float, float]:
        values = sample.values
        return (
            -sample.values["wer"],
            values.get("dnsmos_p808", float("-inf")),
            values.get("speaker_similarity", float("-inf")),
        )

    return sorted(samples, key=badness)


def by_temperature(
    samples: Sequence[SampleResult], columns: Sequence[Column]
) -> dict[float, Figures]:
    temperatures = dict.fromkeys(s.temperature for s in samples if s.temperature is not None)
    return {t: figures([s for s in samples if s.temperature == t], columns) for t in temperatures}


def reasons(samples: Sequence[SampleResult]) -> dict[tuple[str, str], int]:
    """How many utterances each metric set aside for which reason."""
    counts: dict[tuple[str, str], int] = {}
    for sample in samples:
        for pair in sample.set_aside.items():
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def write_figures(path: Path, program: EvaluationProgram, found: Findings) -> None:
    """``report.json``: what the page says, for machines."""
    columns = columns_of(program.evaluation)
    values = {
        "recipe": program.name,
        "suite": program.suite_name,
        "evaluation": program.evaluation.determining(),
        "versions": {metric.name: metric.version for metric in metrics_of(program.evaluation)},
        "target": target_digest(
            program.references, program.speakers, program.characters_per_second
        ),
        "columns": {
            c.name: {"title": c.title, "better": c.better, "unit": c.unit, "about": c.about}
            for c in columns
        },
        "total": found.by_kind[ALL],
        "categories": {kind: row for kind, row in found.by_kind.items() if kind != ALL},
        "manners": found.by_manner,
        "temperatures": {f"{t:g}": row for t, row in found.by_temperature.items()},
        "not_given": not_given(program.evaluation),
        "set_aside": [
            {"metric": metric, "reason": reason, "samples": count}
            for (metric, reason), count in reasons(found.samples).items()
        ],
        "earlier": [
            {"model": row.model, "total": row.figures, "differences": row.differences}
            for row in found.history
        ],
        "lineage": program.lineage,
        "digest": digest_of(found.samples),
    }
    path.write_text(canonical_json(values) + "\n")


def sections(
    folder: Path, samples: Sequence[SampleResult], by_kind: Mapping[str, Figures]
) -> list[Section]:
    """The notebook's content: each category, its worst syntheses first, as many as fit."""
    groups = by_category(samples)
    room = PAGE_BYTES / len(groups)
    return [
        Section(
            f"{kind}: {percent(by_kind[kind].metrics['wer'].value)} word errors",
            [
                NotebookClip(sample.text, caption(sample), folder / sample.audio)
                for sample in that_fit(folder, worst_first(rows), room)
                if sample.audio
            ],
        )
        for kind, rows in groups.items()
    ]


def that_fit(folder: Path, samples: Sequence[SampleResult], room: float) -> list[SampleResult]:
    """The first samples whose audio has no more than ``room`` bytes."""
    kept = []
    for sample in samples:
        room -= (folder / sample.audio).stat().st_size if sample.audio else 0
        if room < 0:
            break
        kept.append(sample)
    return kept


def caption(sample: SampleResult) -> str:
    heard_as = f"heard: {sample.heard or 'nothing'}" if sample.word_errors else "heard as written"
    return f"{heard_as} ({percent(sample.values['wer'], 0)} word errors)"
