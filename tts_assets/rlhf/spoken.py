"""A completion as it sounds, and what the rewards say of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tts_assets.serving.config import Voice
from tts_assets.serving.guards import AUDIBLE_SHARE, audible_share


@dataclass(frozen=True)
class Spoken:
    """A completion: mono float32 ``wave`` at ``rate`` Hz, decoded once for all rewards.

    ``voice`` is the prompt it was said after; ``reference`` the wave of that prompt at the same
    rate, which the panel fills in where a reward asks for it.
    """

    text: str
    wave: NDArray[np.float32]
    rate: int
    ended: bool
    voice: Voice | None = None
    language: str = "en"
    reference: NDArray[np.float32] | None = None

    @property
    def usable(self) -> bool:
        """Whether there is anything to judge: it ended, and is not silent."""
        return self.ended and audible_share(self.wave, self.rate) >= AUDIBLE_SHARE

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate


@dataclass(frozen=True)
class Score:
    """One reward of one completion, in [0, 1]. Recognition also tells what was ``heard`` and its
    ``error``, the WER or CER."""

    value: float
    heard: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Verdict:
    """All rewards of one completion by name, their combination, what was heard and the WER (none
    without a reward that recognizes)."""

    rewards: dict[str, float]
    total: float
    wer: float | None
    heard: str
