"""``report.html``: one self-contained page of figures, players, errors and lineage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tts_assets.config import canonical_json, digest_of
from tts_assets.evaluation.config import EvaluationConfig, LineageRow
from tts_assets.evaluation.page import (
    Heard,
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
    Figures,
    SampleResult,
    by_category,
    figures,
    write_samples,
)
from tts_assets.hearing.text_match import Interval
from tts_assets.notebook import Clip, Section, write_notebook

PAGE_FILE = "report.html"
NOTEBOOK_FILE = "listening.ipynb"


@dataclass(frozen=True)
class Row:
    """A line of the table of figures."""

    name: str
    figures: Figures
    mark: RangeMark


@dataclass(frozen=True)
class Group:
    """A category with its players."""

    name: str
    figures: Figures
    heard: list[Heard]


def write_report(
    folder: Path,
    name: str,
    samples: Sequence[SampleResult],
    config: EvaluationConfig,
    lineage: Sequence[LineageRow] = (),
) -> None:
    """Write rows, figures, page and notebook into ``folder``, which holds the audio already."""
    write_samples(folder / SAMPLES_FILE, samples)
    groups = [
        Group(category, figures(rows), [heard(folder, row, config.language) for row in rows])
        for category, rows in by_category(samples).items()
    ]
    total = figures(samples)
    write_figures(folder / REPORT_FILE, name, total, groups, config, lineage)
    (folder / PAGE_FILE).write_text(report_page(name, total, groups, config, lineage))
    write_notebook(folder / NOTEBOOK_FILE, f"Listening: {name}", sections(folder, groups))


def report_page(
    name: str,
    total: Figures,
    groups: Sequence[Group],
    config: EvaluationConfig,
    lineage: Sequence[LineageRow],
) -> str:
    named = [(group.name, group.figures) for group in groups] + [("all", total)]
    end = scale_end([figure.wer_high for _, figure in named])
    rows = [
        Row(label, f, range_mark(f.wer, Interval(f.wer_low, f.wer_high), 0.0, end))
        for label, f in named
    ]
    return render(
        "report.html.j2",
        title=f"{name}: listening report",
        name=name,
        whisper=config.whisper or "tiny.en",
        total=total,
        rows=rows,
        groups=groups,
        end=end,
        lineage=lineage,
    )


def write_figures(
    path: Path,
    name: str,
    total: Figures,
    groups: Sequence[Group],
    config: EvaluationConfig,
    lineage: Sequence[LineageRow],
) -> None:
    """``report.json``: what the page says, for machines."""
    values = {
        "recipe": name,
        "evaluation": config.model_dump(mode="json", exclude={"suite"}),
        "total": total,
        "categories": {group.name: group.figures for group in groups},
        "lineage": lineage,
        "digest": digest_of([item.sample for group in groups for item in group.heard]),
    }
    path.write_text(canonical_json(values) + "\n")


def sections(folder: Path, groups: Sequence[Group]) -> list[Section]:
    """The notebook's content: each category, its worst syntheses first."""
    return [
        Section(
            f"{group.name}: {percent(group.figures.wer)} word errors",
            [
                Clip(item.sample.text, caption(item.sample), folder / item.sample.audio)
                for item in sorted(group.heard, key=lambda item: -item.sample.wer)
                if item.sample.audio
            ],
        )
        for group in groups
    ]


def caption(sample: SampleResult) -> str:
    heard_as = f"heard: {sample.heard or 'nothing'}" if sample.word_errors else "heard as written"
    return f"{heard_as} ({percent(sample.wer, 0)} word errors)"
