"""Writes a report: ``report.html``, ``report.json``, ``samples.jsonl`` and a listening notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_assets.audio_models.wer import Interval, match
from tts_assets.core.config import canonical_json, digest_of
from tts_assets.core.metadata import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.evaluation.config import MAIN, EvaluationProgram
from tts_assets.evaluation.history import EarlierRow, earlier_rows
from tts_assets.evaluation.metrics import Column, columns_of, metrics_of, not_given
from tts_assets.evaluation.page import (
    HERE,
    PAGE_BYTES,
    RangeMark,
    linked,
    percent,
    range_mark,
    render,
    scale_end,
    synthesis_view,
)
from tts_assets.evaluation.recipes import (
    Nearest,
    in_storage,
    nearest_texts,
    nearest_voices,
    references_digest,
)
from tts_assets.evaluation.results import (
    REPORT_FILE,
    REPORT_PAGE,
    SAMPLES_FILE,
    TEMPERATURES_FILE,
    Figures,
    SampleResult,
    by_category,
    by_manner,
    figures,
    worst_first,
    write_samples,
)
from tts_assets.evaluation.suite import read_suite

ALL = "all"
HISTOGRAM_BINS = 20
HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT = 240, 64


@dataclass(frozen=True)
class Bar:
    """A bin of a histogram: its rectangle, and its description."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """The distribution of a column. ``median``: its x coordinate."""

    column: Column
    bars: tuple[Bar, ...]
    low: str
    high: str
    median: float
    label: str


@dataclass(frozen=True)
class ReportRow:
    """A row of a table of figures; ``mark`` shows the WER and its interval."""

    name: str
    figures: Figures
    mark: RangeMark | None


@dataclass(frozen=True)
class Findings:
    """The content of the page and of ``report.json``.

    ``samples``: syntheses of the main figures; ``others``: those at other temperatures.
    """

    samples: Sequence[SampleResult]
    others: Sequence[SampleResult]
    by_kind: Mapping[str, Figures]
    by_manner: Mapping[str, Figures]
    by_temperature: Mapping[float, Figures]
    history: Sequence[EarlierRow]
    nearest: Mapping[str, Nearest]  # training utterance by text, by id of the text
    nearest_voices: Mapping[str, Nearest]  # training utterance by voice, by audio file


def write_report(folder: Path, program: EvaluationProgram, results: Sequence[SampleResult]) -> None:
    """Write rows, figures, page and notebook to ``folder``, which already contains the audio."""
    samples = [sample for sample in results if sample.temperature is None]
    others = [sample for sample in results if sample.temperature is not None]
    write_samples(folder / SAMPLES_FILE, samples)
    if others:
        write_samples(folder / TEMPERATURES_FILE, others)
    found = findings(folder, program, samples, others)
    write_figures(folder / REPORT_FILE, program, found)
    (folder / REPORT_PAGE).write_text(report_page(folder, program, found))
    title = f"Listening: {program.name}"
    write_notebook(folder / NOTEBOOK_FILE, title, sections(folder, samples, found.by_kind))


def findings(
    folder: Path,
    program: EvaluationProgram,
    samples: Sequence[SampleResult],
    others: Sequence[SampleResult],
) -> Findings:
    """The figures of all groups of syntheses, and the comparison with earlier reports."""
    columns = columns_of(program.evaluation)

    def all_figures(groups: Mapping[str, Sequence[SampleResult]]) -> dict[str, Figures]:
        return {name: figures(rows, columns) for name, rows in groups.items()}

    return Findings(
        samples,
        others,
        by_kind=all_figures({**by_category(samples), ALL: samples}),
        by_manner=all_figures(by_manner(samples)),
        by_temperature=by_temperature(others, columns),
        history=earlier_rows(samples, program.earlier, columns),
        nearest=nearest_texts({s.id: s.text for s in samples}, program.training),
        nearest_voices=voices_of_training(folder, program, samples),
    )


def voices_of_training(
    folder: Path, program: EvaluationProgram, samples: Iterable[SampleResult]
) -> dict[str, Nearest]:
    """By audio file, the training utterance with the most similar voice.

    Empty if the report does not measure speaker similarity, or without training data.
    """
    if "similarity" not in program.evaluation.metrics or not program.training:
        return {}
    audio = {sample.audio: folder / sample.audio for sample in samples if sample.audio}
    encoder = program.evaluation.speaker_encoder
    return nearest_voices(audio, program.training, encoder, program.measurements)


def by_temperature(
    samples: Sequence[SampleResult], columns: Sequence[Column]
) -> dict[float, Figures]:
    """The figures at each temperature, in order of appearance."""
    temperatures = dict.fromkeys(s.temperature for s in samples if s.temperature is not None)
    return {t: figures([s for s in samples if s.temperature == t], columns) for t in temperatures}


def report_page(folder: Path, program: EvaluationProgram, found: Findings) -> str:
    """The HTML page; the worst syntheses come first."""
    total = found.by_kind[ALL]
    columns = [c for c in columns_of(program.evaluation) if c.name in total.metrics]
    samples = worst_first(found.samples)
    manners = {**found.by_manner, ALL: total} if found.by_manner else {}
    tables = (found.by_kind, manners)
    rates = [row.metrics.get("wer") for table in tables for row in table.values()]
    end = scale_end([wer.high for wer in rates if wer])
    rows, manner_rows = (table_rows(table, end) for table in tables)
    return render(
        HERE / "report.html.j2",
        title=f"{program.name}: evaluation report",
        name=program.name,
        suite="" if program.suite_name == MAIN else program.suite_name,
        whisper=(program.evaluation.whisper or "tiny.en") if "wer" in total.metrics else "",
        total=total,
        columns=columns,
        rows=rows,
        manners=manner_rows,
        syntheses=[synthesis_view(folder, sample, linked) for sample in samples],
        others=found.by_temperature,
        other_syntheses=[synthesis_view(folder, sample, linked) for sample in found.others],
        histograms=histograms(found.samples, columns),
        history=found.history,
        not_given=not_given(program.evaluation),
        reasons=reasons(found.samples),
        end=end,
        lineage=program.lineage,
        storage=program.storage,
        nearest=found.nearest,
        nearest_voices=found.nearest_voices,
        prompts=prompt_links(program),
    )


def prompt_links(program: EvaluationProgram) -> dict[str, str]:
    """By id of a text, its voice prompt, relative to the storage; empty without a storage."""
    if not program.storage:
        return {}
    folder = in_storage(program.suite).rpartition("/")[0]
    texts = read_suite(program.suite, program.evaluation.language)
    named = {text.id: text.prompt_wav for text in texts if text.prompt_wav}
    return {key: f"{folder}/{path.parent.name}/{path.name}" for key, path in named.items()}


def table_rows(table: Mapping[str, Figures], end: float) -> list[ReportRow]:
    """The rows of a table of figures; the scale of the WER is from 0 to ``end``."""
    rows = []
    for name, found in table.items():
        wer = found.metrics.get("wer")
        mark = range_mark(wer.value, Interval(wer.low, wer.high), 0.0, end) if wer else None
        rows.append(ReportRow(name, found, mark))
    return rows


def reasons(samples: Sequence[SampleResult]) -> dict[tuple[str, str], int]:
    """The number of missing values by metric and reason."""
    counts: dict[tuple[str, str], int] = {}
    for sample in samples:
        for pair in sample.set_aside.items():
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def histograms(samples: Sequence[SampleResult], columns: Iterable[Column]) -> list[Histogram]:
    """A histogram of each shown column that has at least two different values."""
    found = []
    for column in columns:
        values = [s.values[column.name] for s in samples if column.name in s.values]
        if column.shown and len(set(values)) > 1:
            found.append(histogram(values, column))
    return found


def histogram(values: Sequence[float], column: Column) -> Histogram:
    """The histogram of at least two different values."""
    counts, edges = np.histogram(values, bins=HISTOGRAM_BINS)
    low, high, middle = float(edges[0]), float(edges[-1]), float(np.median(values))
    step = HISTOGRAM_WIDTH / HISTOGRAM_BINS
    tallest = int(counts.max())
    bars = tuple(
        Bar(
            x=round(index * step + 0.5, 1),
            y=round(HISTOGRAM_HEIGHT - HISTOGRAM_HEIGHT * count / tallest, 1),
            width=step - 1,
            height=round(HISTOGRAM_HEIGHT * count / tallest, 1),
            label=f"{count} from {column.text(edges[index])} to {column.text(edges[index + 1])}",
        )
        for index, count in enumerate(counts.tolist())
        if count
    )
    label = (
        f"{column.title} of {len(values)} syntheses: {column.text(low)} to {column.text(high)}, "
        f"median {column.text(middle)}"
    )
    median = round(HISTOGRAM_WIDTH * (middle - low) / (high - low), 1)
    return Histogram(column, bars, column.text(low), column.text(high), median, label)


def write_figures(path: Path, program: EvaluationProgram, found: Findings) -> None:
    """Write ``report.json``, the content of the page for programs."""
    columns = columns_of(program.evaluation)
    values = {
        "recipe": program.name,
        "suite": program.suite_name,
        "evaluation": program.evaluation.determining(),
        "versions": {metric.name: metric.version for metric in metrics_of(program.evaluation)},
        "target": references_digest(
            program.references, program.speakers, program.characters_per_second
        ),
        "columns": {
            c.name: {
                **{"title": c.title, "better": c.better, "unit": c.unit, "about": c.about},
                **{"digits": c.digits, "smallest": c.smallest},
            }
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
        "nearest_training": found.nearest,
        "nearest_voice": found.nearest_voices,
        "digest": digest_of(found.samples),
    }
    path.write_text(canonical_json(values) + "\n")


def sections(
    folder: Path, samples: Sequence[SampleResult], by_kind: Mapping[str, Figures]
) -> list[Section]:
    """The notebook: a section for each category with its worst syntheses, as many as fit."""
    groups = by_category(samples)
    room = PAGE_BYTES / len(groups)
    return [
        Section(
            f"{kind}: WER {percent(wer.value)}" if wer else kind,
            [
                NotebookClip(sample.text, caption(sample), folder / sample.audio)
                for sample in that_fit(folder, worst_first(rows), room)
                if sample.audio
            ],
        )
        for kind, rows in groups.items()
        for wer in [by_kind[kind].metrics.get("wer")]
    ]


def that_fit(folder: Path, samples: Sequence[SampleResult], room: float) -> list[SampleResult]:
    """The first samples whose audio has at most ``room`` bytes together."""
    kept = []
    for sample in samples:
        room -= (folder / sample.audio).stat().st_size if sample.audio else 0
        if room < 0:
            break
        kept.append(sample)
    return kept


def caption(sample: SampleResult) -> str:
    """The ASR transcript of a synthesis with its WER and errors."""
    if not sample.transcribed:
        return "not transcribed"
    wer = f"WER {percent(sample.values['wer'], 0)}"
    if not sample.word_errors:
        return f"ASR transcript: as written ({wer})"
    errors = match(sample.text, sample.heard, sample.language).errors_by_kind
    return f"ASR transcript: {sample.heard or 'empty'} ({wer}: {errors})"
