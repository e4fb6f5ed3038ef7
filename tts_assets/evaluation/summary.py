"""A comparison in words, drawn from its figures alone: no sentence without an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.results import Difference, Figures

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
