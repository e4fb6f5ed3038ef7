"""``[promotion.<voice>]``: who may serve, and by how much a candidate must be better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from tts_assets.core.config import Config

Metric = Literal["wer", "cer", "perfect", "dnsmos_p808", "dnsmos_overall", "speaker_similarity"]
METRICS: tuple[Metric, ...] = get_args(Metric)
LOWER_IS_BETTER = ("wer", "cer")
MARGINS: Mapping[Metric, float] = {
    "wer": 0.005,
    "dnsmos_p808": -0.1,
    "speaker_similarity": -0.02,
}


class PromotionConfig(Config):
    """``[promotion.<voice>]``: recipes whose serving models compete for a voice.

    The first candidate that has a report serves first. ``margins`` are gains over the model that
    serves, of the figures in ``report.json``: 0.005 asks for a WER that is lower by half a percent
    point, -0.1 allows a MOS that is lower by a tenth. All of them must be reached.
    """

    candidates: tuple[str, ...] = Field(min_length=1)
    category: str = Field("", description="of the suite, whose figures count; empty: of all texts")
    margins: dict[Metric, float] = Field(default_factory=lambda: dict(MARGINS), min_length=1)

    @property
    def gains_needed(self) -> dict[str, float]:
        """``margins`` by plain names."""
        return dict(self.margins.items())

    @model_validator(mode="after")
    def _something_gets_better(self) -> Self:
        if max(self.margins.values()) <= 0:
            raise ValueError(
                f"margins {self.margins} ask for no gain, so that equal models would replace each "
                "other without end; write one above 0, such as wer = 0.005"
            )
        return self
