"""The summary of a comparison: sentences about the differences, the most important first.

It is derived from the figures alone. Every difference in it has an interval that excludes zero, is
visible with the digits that the page shows, and is at least ``Column.smallest``. The intervals of
one comparison are corrected for their number by Bonferroni: with N of them, each has the level
1 - 0.05 / N, and all hold together with a probability of at least 95 %. Source: Dunn, Multiple
comparisons among means (JASA 56, 1961). It is conservative where metrics depend on each other, as
WER and CER do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.results import FEWEST_TEXTS, Difference

WER = "wer"
SUMMARY_COLUMNS = (
    *(WER, "speaker_similarity", "dnsmos_p808", "utmos", "truncated", "repeated"),
    *("speaking_rate", "duration_ratio", "f0_median", "f0_spread"),
)
PHRASES = {"better": "is better in", "worse": "is worse in", "other": "differs in"}


@dataclass(frozen=True)
class Changes:
    """How a model differs from a baseline: by column on all texts, and in WER by category."""

    baseline: str
    candidate: str
    columns: Mapping[str, Difference]
    categories: Mapping[str, Difference]


def summary(
    pairs: Mapping[tuple[str, str], Changes],
    models: Sequence[str],
    columns: Sequence[Column],
    decisive: Sequence[str] = (),
) -> list[str]:
    """Sentences that compare each model with the first model, and with the one before it.

    ``decisive``: categories of the suite that decide on promotions. They come first.
    """
    shown = [column for name in SUMMARY_COLUMNS for column in columns if column.name == name]
    sentences = []
    for index, candidate in enumerate(models[1:], start=1):
        for baseline in dict.fromkeys([models[0], models[index - 1]]):
            sentences += pair_summary(pairs[baseline, candidate], shown, decisive)
    return sentences


def pair_summary(changes: Changes, columns: Sequence[Column], decisive: Sequence[str]) -> list[str]:
    """Sentences about one pair: the decisive categories, what differs, and what may be chance."""
    by_name = {column.name: column for column in columns}
    first = [name for name in decisive if name in changes.categories and WER in by_name]
    sentences = [decisive_sentence(changes, name, by_name[WER]) for name in first]
    found: list[tuple[str, Column, Difference]] = [
        (f"WER of {name}", by_name[WER], change)
        for name, change in changes.categories.items()
        if name not in first and WER in by_name
    ]
    found += [
        (title_of(column), column, changes.columns[column.name])
        for column in columns
        if column.name in changes.columns
    ]
    certain = [one for one in found if is_relevant(one[1], one[2])]
    for direction, phrase in PHRASES.items():
        each = [
            f"{title}: {described(column, change)}"
            for title, column, change in certain
            if direction_of(column, change) == direction
        ]
        if each:
            listing = "; ".join(each)
            sentences.append(
                f"{changes.candidate} {phrase} {listing}, compared with {changes.baseline}."
            )
    return sentences + others(changes, [one[0] for one in found if one not in certain])


def decisive_sentence(changes: Changes, category: str, wer: Column) -> str:
    """The WER of a category that decides on promotions, whether it changed or not."""
    change = changes.categories[category]
    start = f"{category}, which decides on promotion: {changes.candidate}"
    values = f"WER {wer.text(change.candidate)} instead of {wer.text(change.baseline)}"
    if change.texts < FEWEST_TEXTS:
        return f"{start} has {values}; {change.texts} texts are too few for an interval."
    if is_relevant(wer, change):
        return (
            f"{start} is {direction_of(wer, change)}, {described(wer, change, 'WER ')}, compared "
            f"with {changes.baseline}."
        )
    interval = wer.signed_range(change.low, change.high)
    return f"{start} does not differ significantly, {values} (interval {interval})."


def others(changes: Changes, titles: Sequence[str]) -> list[str]:
    """The sentence about everything that does not differ enough; none if ``titles`` is empty."""
    if not titles:
        return []
    texts = max(change.texts for change in changes.columns.values())
    if texts < FEWEST_TEXTS:
        return [
            f"{texts} texts are too few to compare {changes.candidate} and {changes.baseline}: "
            f"intervals need {FEWEST_TEXTS}."
        ]
    return [
        f"With {texts} texts, {changes.candidate} and {changes.baseline} have no significant "
        f"difference that matters in {listed(titles)}."
    ]


def is_relevant(column: Column, change: Difference) -> bool:
    """Whether a difference is certain, visible with the shown digits, and large enough."""
    visible = column.number(change.candidate) != column.number(change.baseline)
    large = abs(change.difference) >= column.smallest
    return change.texts >= FEWEST_TEXTS and change.certain and visible and large


def direction_of(column: Column, change: Difference) -> str:
    """``better``, ``worse``, or ``other`` if the column has no better direction."""
    if not column.better:
        return "other"
    return "better" if (change.difference < 0) == (column.better == "low") else "worse"


def described(column: Column, change: Difference, name: str = "") -> str:
    """A difference in words."""
    return (
        f"{name}{column.text(change.candidate)} instead of {column.text(change.baseline)} "
        f"(interval of the difference: {column.signed_range(change.low, change.high)})"
    )


def about_intervals(number: int) -> str:
    """The sentence that says what the intervals are."""
    return (
        f"Intervals hold together at 95 %: they are corrected for their number, {number} "
        "(Bonferroni)."
    )


def title_of(column: Column) -> str:
    """The title within a sentence: in lower case, but not acronyms such as WER."""
    first, *rest = column.title.split(" ")
    return " ".join([first if first.isupper() else first.lower(), *rest])


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
