"""Is a report certainly worse than the incumbent's, by more than a margin?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.results import Difference, SampleResult, difference

FEWEST_TEXTS = 10  # below, a bootstrap interval means nothing


@dataclass(frozen=True)
class Verdict:
    """``worse_by`` is positive where the candidate is worse; ``low`` and ``high`` its interval."""

    passed: bool
    why: str
    texts: int = 0
    worse_by: float = 0.0
    low: float = 0.0
    high: float = 0.0


def judge(
    candidate: Sequence[SampleResult],
    incumbent: Sequence[SampleResult],
    column: Column,
    margin: float,
) -> Verdict:
    """Fails only if the whole 95 % interval of the difference lies beyond the margin.

    Paired over the texts that both reports said, so a suite that grew can still be judged.
    """
    both = {s.key for s in incumbent}
    change = difference(incumbent, [s for s in candidate if s.key in both], column)
    if change is None or change.texts < FEWEST_TEXTS:
        texts = change.texts if change else 0
        return Verdict(True, f"{texts} texts in common, {FEWEST_TEXTS} are needed to judge", texts)
    worse_by, low, high = worsening(change, column)
    certain = low > margin
    interval = f"95 % interval {column.signed_range(low, high)}"
    why = f"worse by {column.signed(worse_by)}, {interval}; margin {column.text(margin)}"
    return Verdict(not certain, why, change.texts, worse_by, low, high)


def worsening(change: Difference, column: Column) -> tuple[float, float, float]:
    """The difference and its interval, turned so that positive is worse."""
    if column.better == "high":
        return -change.difference, -change.high, -change.low
    return change.difference, change.low, change.high
