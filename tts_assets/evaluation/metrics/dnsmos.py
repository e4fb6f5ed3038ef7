"""DNSMOS: how natural it sounds (``hearing/naturalness.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from tts_assets.evaluation.metrics.metric import (
    Column,
    Metric,
    Setting,
    Unmeasured,
    Utterance,
    Values,
)
from tts_assets.hearing.naturalness import SHORTEST_SECONDS, NaturalnessScorer


class Dnsmos(Metric):
    name, version = "dnsmos", "1"
    columns = (
        Column(
            "dnsmos_p808",
            "Naturalness",
            "DNSMOS P.808: how listeners would rate the quality, 1 to 5.",
            better="high",
            shown=True,
        ),
        Column(
            "dnsmos_overall",
            "DNSMOS overall",
            "DNSMOS P.835: the overall rating in the presence of noise, 1 to 5.",
            better="high",
        ),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.score = NaturalnessScorer()

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._one(utterance) for utterance in utterances]

    def _one(self, utterance: Utterance) -> Values | Unmeasured:
        mos = self.score(utterance.wave, utterance.rate)
        if mos is None:
            return Unmeasured(f"shorter than {SHORTEST_SECONDS:g} s")
        return {"dnsmos_p808": mos.p808, "dnsmos_overall": mos.overall}
