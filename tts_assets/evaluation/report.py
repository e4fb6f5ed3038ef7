"""``report.html``: one self-contained page of figures, players, errors, history and lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tts_assets.config import canonical_json, digest_of
from tts_assets.evaluation.clips import PAGE_BYTES, Embedder
from tts_assets.evaluation.config import MAIN, EvaluationProgram
from tts_assets.evaluation.distributions import distributions
from tts_assets.evaluation.history import Past, past
from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.metrics.registry import columns_of, metrics_of, not_given
from tts_assets.evaluation.page import (
    HERE,
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
from tts_assets.hearing.text_match import Interval
from tts_assets.notebook import Clip, Section, write_notebook

PAGE_FILE = "report.html"
NOTEBOOK_FILE = "listening.ipynb"
ALL = "all"


@dataclass(frozen=True)
class Row:
    """A line of the table of kinds; ``mark`` is that of the word errors."""

    name: str
    figures: Figures
    mark: RangeMark


def write_report(folder: Path, program: EvaluationProgram, said: Sequence[SampleResult]) -> None:
    """Write rows, figures, page and notebook into ``folder``, which holds the audio already."""
    samples = [sample for sample in said if sample.temperature is None]
    others = [sample for sample in said if sample.temperature is not None]
    write_samples(folder / SAMPLES_FILE, samples)
    if others:
        write_samples(folder / TEMPERATURES_FILE, others)
    columns = columns_of(program.evaluation)
    by_kind = {kind: figures(rows, columns) for kind, rows in by_category(samples).items()}
    by_kind[ALL] = figures(samples, columns)
    history = past(samples, program.earlier, columns)
    write_figures(folder / REPORT_FILE, program, samples, by_kind, others, history)
    page = report_page(folder, program, samples, others, by_kind, history)
    (folder / PAGE_FILE).write_text(page)
    title = f"Listening: {program.name}"
    write_notebook(folder / NOTEBOOK_FILE, title, sections(folder, samples, by_kind))


def report_page(
    folder: Path,
    program: EvaluationProgram,
    samples: Sequence[SampleResult],
    others: Sequence[SampleResult],
    by_kind: Mapping[str, Figures],
    history: Sequence[Past],
) -> str:
    columns = [c for c in columns_of(program.evaluation) if c.name in by_kind[ALL].metrics]
    named = worst_first(samples)
    audio = [folder / s.audio for s in [*named, *others] if s.audio]
    embed = Embedder(audio)
    manners = manner_figures(samples, columns)
    tables = (by_kind, manners | {ALL: by_kind[ALL]} if manners else {})
    end = scale_end([found.metrics["wer"].high for table in tables for found in table.values()])
    rows, manner_rows = (table_rows(table, end) for table in tables)
    suite = "" if program.suite_name == MAIN else program.suite_name
    return render(
        HERE / "report.html.j2",
        title=f"{program.name}: listening report",
        name=program.name,
        suite=suite,
        whisper=program.evaluation.whisper or "tiny.en",
        total=by_kind[ALL],
        columns=columns,
        rows=rows,
        manners=manner_rows,
        heard=[heard(folder, sample, embed) for sample in named],
        others=by_temperature(others, columns),
        other_heard=[heard(folder, sample, embed) for sample in others],
        lossless=embed.lossless,
        distributions=distributions(samples, columns),
        history=history,
        not_given=not_given(program.evaluation),
        reasons=reasons(samples),
        end=end,
        lineage=program.lineage,
    )


def manner_figures(
    samples: Sequence[SampleResult], columns: Sequence[Column]
) -> dict[str, Figures]:
    return {manner: figures(rows, columns) for manner, rows in by_manner(samples).items()}


def table_rows(table: Mapping[str, Figures], end: float) -> list[Row]:
    """The lines of a table, with marks on a scale that ends at ``end``."""
    rows = []
    for name, found in table.items():
        wer = found.metrics["wer"]
        mark = range_mark(wer.value, Interval(wer.low, wer.high), 0.0, end)
        rows.append(Row(name, found, mark))
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


def write_figures(
    path: Path,
    program: EvaluationProgram,
    samples: Sequence[SampleResult],
    by_kind: Mapping[str, Figures],
    others: Sequence[SampleResult],
    history: Sequence[Past],
) -> None:
    """``report.json``: what the page says, for machines."""
    columns = columns_of(program.evaluation)
    values = {
        "recipe": program.name,
        "suite": program.suite_name,
        "evaluation": program.evaluation.determining(),
        "versions": {metric.name: metric.version for metric in metrics_of(program.evaluation)},
        "columns": {
            c.name: {"title": c.title, "better": c.better, "unit": c.unit, "about": c.about}
            for c in columns
        },
        "total": by_kind[ALL],
        "categories": {kind: found for kind, found in by_kind.items() if kind != ALL},
        "manners": manner_figures(samples, columns),
        "temperatures": {f"{t:g}": f for t, f in by_temperature(others, columns).items()},
        "not_given": not_given(program.evaluation),
        "set_aside": [
            {"metric": metric, "reason": reason, "samples": count}
            for (metric, reason), count in reasons(samples).items()
        ],
        "earlier": [
            {"model": row.model, "total": row.figures, "differences": row.differences}
            for row in history
        ],
        "lineage": program.lineage,
        "digest": digest_of(samples),
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
                Clip(sample.text, caption(sample), folder / sample.audio)
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
