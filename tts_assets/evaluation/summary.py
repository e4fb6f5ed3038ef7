"""The text summary of a comparison, and its listening notebook.

The summary is derived from the figures alone; every statement has an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tts_assets.core.notebook import NotebookClip, Section
from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.page import PAGE_BYTES, percent
from tts_assets.evaluation.report import caption
from tts_assets.evaluation.results import Difference, Figures, SampleResult, grouped

ModelSamples = tuple[str, Path, Sequence[SampleResult]]
"""A model's name, its report's folder, and its samples in the same order as the other models'."""
TextRow = tuple[SampleResult, ...]
"""The syntheses of one text with one seed, one of each model."""

SUMMARY_COLUMNS = (
    *("wer", "speaker_similarity", "dnsmos_p808", "utmos", "truncated", "repeated", "dropped"),
    *("speaking_rate", "duration_ratio", "f0_median", "f0_spread"),
)


def summary(
    models: Sequence[tuple[str, Figures]],
    pairs: Mapping[tuple[str, str], Mapping[str, Difference]],
    columns: Sequence[Column],
) -> list[str]:
    """Sentences that compare each model with the first model, and with the one before it."""
    names = [name for name, _ in models]
    shown = [column for name in SUMMARY_COLUMNS for column in columns if column.name == name]
    sentences = []
    for index, candidate in enumerate(names[1:], start=1):
        for baseline in dict.fromkeys([names[0], names[index - 1]]):
            sentences += pair_summary(baseline, candidate, pairs[baseline, candidate], shown)
    return sentences


def pair_summary(
    baseline: str, candidate: str, changes: Mapping[str, Difference], columns: Sequence[Column]
) -> list[str]:
    """Sentences about one pair: what is better, worse, different, and what may be chance."""
    certain = [c for c in columns if c.name in changes and changes[c.name].certain]
    uncertain = [c for c in columns if c.name in changes and not changes[c.name].certain]
    phrases = {"better": "is better in", "worse": "is worse in", "other": "differs in"}
    sentences = []
    for direction, phrase in phrases.items():
        found = [
            described(column, changes[column.name])
            for column in certain
            if direction_of(column, changes[column.name]) == direction
        ]
        if found:
            sentences.append(f"{candidate} {phrase} {'; '.join(found)}, compared with {baseline}.")
    if uncertain:
        texts = max(changes[column.name].texts for column in uncertain)
        sentences.append(
            f"With {texts} texts, {candidate} and {baseline} do not differ significantly in "
            f"{listed([title_of(c) for c in uncertain])}."
        )
    return sentences


def direction_of(column: Column, change: Difference) -> str:
    """``better``, ``worse``, or ``other`` if the column has no better direction."""
    if not column.better:
        return "other"
    return "better" if (change.difference < 0) == (column.better == "low") else "worse"


def described(column: Column, change: Difference) -> str:
    """A difference in words."""
    return (
        f"{title_of(column)}: {column.text(change.candidate)} instead of "
        f"{column.text(change.baseline)} (95 % interval of the difference: "
        f"{column.signed_range(change.low, change.high)})"
    )


def title_of(column: Column) -> str:
    """The title within a sentence: in lower case, but not acronyms such as WER."""
    first, *rest = column.title.split(" ")
    return " ".join([first if first.isupper() else first.lower(), *rest])


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


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
            section_title(category, models, wer_by_category[category]),
            clips_that_fit(models, rows, room),
        )
        for category, rows in groups.items()
    ]


def section_title(category: str, models: Sequence[ModelSamples], rates: Sequence[float]) -> str:
    """The category with the WER of each model."""
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
    rates = [sample.values["wer"] for sample in row]
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
