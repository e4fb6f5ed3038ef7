"""Truncation: speech that was cut off before the text was over."""

from __future__ import annotations

from collections.abc import Sequence

from tts_assets.evaluation.metrics.metric import Column, Metric, Unmeasured, Utterance, Values


class Truncation(Metric):
    name, version = "truncation", "1"
    columns = (
        Column(
            "truncated",
            "Cut short",
            "Share of syntheses that reached the token limit, or whose last word was not heard.",
            better="low",
            unit="%",
            digits=1,
        ),
    )

    def key(self, utterance: Utterance) -> None:
        return None

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [{"truncated": float(cut_short(utterance))} for utterance in utterances]


def cut_short(utterance: Utterance) -> bool:
    return not utterance.ended or utterance.match.spans[-1].change == "delete"
