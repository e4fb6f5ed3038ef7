"""Configuration of promotion: candidates for a voice, and the gains that a promotion needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from tts_assets.core.config import Config

Metric = Literal["wer", "cer", "perfect", "dnsmos_p808", "dnsmos_overall", "speaker_similarity"]
MEASURED_BY = ("words", "dnsmos", "similarity")  # the metrics with these columns
MARGINS: Mapping[Metric, float] = {
    "wer": 0.005,
    "dnsmos_p808": -0.1,
    "speaker_similarity": -0.02,
}


class PromotionConfig(Config):
    """``[promotion.<voice>]``: recipes whose serving models are candidates for a voice.

    The first candidate that has a report is promoted first. ``margins`` are the gains over the
    promoted model that a candidate needs, of values in ``report.json``: 0.005 requires a WER that
    is lower by half a percentage point, -0.1 allows a DNSMOS that is lower by 0.1. A candidate must
    reach all margins, and not by chance: the whole 95 % interval of the paired difference over the
    texts of both reports must reach the margin.
    """

    candidates: tuple[str, ...] = Field(min_length=1, description="recipes with a serving model")
    category: str = Field("", description="category of the suite to compare; empty: all texts")
    margins: dict[Metric, float] = Field(
        default_factory=lambda: dict(MARGINS),
        min_length=1,
        description="required improvement by metric; negative: permitted decline",
    )

    @property
    def gains_needed(self) -> dict[str, float]:
        """``margins`` with keys of type str."""
        return dict(self.margins.items())

    def check_candidates(self, voice: str, recipes: Collection[str]) -> None:
        """Raise ValueError for a candidate that is none of the SpeechLM recipes."""
        for candidate in set(self.candidates) - set(recipes):
            raise ValueError(
                f"promotion.{voice} names the candidate {candidate!r}, which is no recipe; "
                f"known recipes: {sorted(recipes)}"
            )

    @model_validator(mode="after")
    def _require_a_gain(self) -> Self:
        if max(self.margins.values()) <= 0:
            raise ValueError(
                f"margins {self.margins} require no gain, so that equal models would replace each "
                "other forever; set at least one above 0, such as wer = 0.005"
            )
        return self
