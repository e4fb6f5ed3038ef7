"""A comparison in words, drawn from its figures alone: no sentence without an interval.

``listening.ipynb`` of a comparison: what every model made of a text, one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tts_assets.core.notebook import NotebookClip, Section
from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.page import PAGE_BYTES, percent
from tts_assets.evaluation.report import caption
from tts_assets.evaluation.results import Difference, Figures, SampleResult, grouped

Said = tuple[str, Path, Sequence[SampleResult]]
"""A model's name, its report's folder, and its samples in the order of all models'."""
Row = tuple[SampleResult, ...]
"""One text of one seed, as each model said it."""


def sections(models: Sequence[Said], errors: Mapping[str, Sequence[float]]) -> list[Section]:
    """A category each, the texts that the models differ in most first, as many as fit.

    ``errors``: word errors by category, a number a model.
    """
    rows = zip(*(samples for _, _, samples in models), strict=True)
    groups = grouped((row[0].category, row) for row in rows)
    room = PAGE_BYTES / len(groups)
    return [
        Section(title(category, models, errors[category]), clips_that_fit(models, rows, room))
        for category, rows in groups.items()
    ]


def title(category: str, models: Sequence[Said], errors: Sequence[float]) -> str:
    each = (f"{name} {percent(rate)}" for (name, _, _), rate in zip(models, errors, strict=True))
    return f"{category}: {', '.join(each)} word errors"


def clips_that_fit(models: Sequence[Said], rows: Sequence[Row], room: float) -> list[NotebookClip]:
    """The clips of the first texts whose audio has no more than ``room`` bytes: all of a text's
    or none."""
    shown: list[NotebookClip] = []
    for row in sorted(rows, key=apart, reverse=True):
        clips = clips_of(models, row)
        room -= sum(clip.path.stat().st_size for clip in clips)
        if room < 0:
            break
        shown += clips
    return shown


def apart(row: Row) -> tuple[float, float]:
    """How far the models are from each other in word errors, then how many all made."""
    rates = [sample.values["wer"] for sample in row]
    return max(rates) - min(rates), sum(rates)


def clips_of(models: Sequence[Said], row: Row) -> list[NotebookClip]:
    """A player a model; who said nothing at all has none, and is named beside the text."""
    each = list(zip(models, row, strict=True))
    silent = [name for (name, _, _), sample in each if sample.audio is None]
    text = row[0].text + (f" ({', '.join(silent)} said nothing)" if silent else "")
    return [
        NotebookClip(text, f"{name}; {caption(sample)}", folder / sample.audio)
        for (name, folder, _), sample in each
        if sample.audio
    ]


SPOKEN_OF = (
    *("wer", "speaker_similarity", "dnsmos_p808", "utmos", "truncated", "repeated", "dropped"),
    *("speaking_rate", "duration_ratio", "f0_median", "f0_spread"),
)


def summary(
    models: Sequence[tuple[str, Figures]],
    pairs: Mapping[tuple[str, str], Mapping[str, Difference]],
    columns: Sequence[Column],
) -> list[str]:
    """Each model against the first and against the one before it, which may be the same."""
    names = [name for name, _ in models]
    spoken = [column for name in SPOKEN_OF for column in columns if column.name == name]
    sentences = []
    for place, candidate in enumerate(names[1:], start=1):
        for baseline in dict.fromkeys([names[0], names[place - 1]]):
            sentences += against(baseline, candidate, pairs[baseline, candidate], spoken)
    return sentences


def against(
    baseline: str, candidate: str, changes: Mapping[str, Difference], columns: Sequence[Column]
) -> list[str]:
    """What is certainly better, worse or other, and what cannot be told apart."""
    certain = [c for c in columns if c.name in changes and changes[c.name].certain]
    open_ = [c for c in columns if c.name in changes and not changes[c.name].certain]
    groups = {"better": "is better in", "worse": "is worse in", "other": "differs in"}
    sentences = []
    for verdict, words in groups.items():
        found = [
            described(column, changes[column.name])
            for column in certain
            if judged(column, changes[column.name]) == verdict
        ]
        if found:
            sentences.append(f"{candidate} {words} {'; '.join(found)}, against {baseline}.")
    if open_:
        texts = max(changes[column.name].texts for column in open_)
        sentences.append(
            f"With {texts} texts, {candidate} and {baseline} cannot be told apart in "
            f"{listed([c.title.lower() for c in open_])}."
        )
    return sentences


def judged(column: Column, change: Difference) -> str:
    if not column.better:
        return "other"
    return "better" if (change.difference < 0) == (column.better == "low") else "worse"


def described(column: Column, change: Difference) -> str:
    return (
        f"{column.title.lower()}: {column.text(change.candidate)} instead of "
        f"{column.text(change.baseline)} (95 % interval of the change: "
        f"{column.signed_range(change.low, change.high)})"
    )


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
