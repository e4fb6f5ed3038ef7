"""Whose voice it is: cosine of GE2E speaker embeddings (resemblyzer's weights, or others).

With resemblyzer's, two clips of one speaker are at 0.8 to 0.95, of two speakers at 0.5 to 0.7; the
channel counts too. An embedding is the unit vector of shape (256,) that the encoder gives for a
clip at 16 kHz, silences shortened. Source: Wan et al., Generalized end-to-end loss (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tts_assets.speakers.config import RESEMBLYZER
from tts_assets.speakers.encoder import SHORTEST_SECONDS, Embedding, VoiceEncoder
from tts_assets.speakers.source import resolve


class SpeakerEncoder:
    """A GE2E encoder on the CPU: resemblyzer's, whose weights lie in its package, or the one at
    ``path`` (see :mod:`tts_assets.speakers.source`)."""

    def __init__(self, path: Path | None = None) -> None:
        self.encoder = VoiceEncoder.load(path or resolve(RESEMBLYZER, Path()))

    def embed(self, wave: NDArray[np.float32], rate: int) -> Embedding | None:
        """The voice of a mono clip; None if it holds less than 0.3 s of speech."""
        return self.encoder.embed(np.clip(wave, -1.0, 1.0), rate)


class SpeakerSimilarity:
    """How near a clip's voice is to the mean voice of reference clips."""

    def __init__(
        self, encoder: SpeakerEncoder, references: Sequence[tuple[NDArray[np.float32], int]]
    ) -> None:
        """``references``: waves, shape (samples,), of one speaker with their rates in Hz; at least
        one of them must hold speech."""
        found = [encoder.embed(wave, rate) for wave, rate in references]
        voices = [embedding for embedding in found if embedding is not None]
        if not voices:
            raise ValueError(
                f"none of the {len(references)} reference clips holds {SHORTEST_SECONDS} s of "
                "speech: give longer clips of the speaker"
            )
        self.encoder = encoder
        mean = np.mean(voices, axis=0)
        self.voice = mean / np.linalg.norm(mean)

    def __call__(self, wave: NDArray[np.float32], rate: int) -> float | None:
        """Cosine to the reference voice, -1 to 1; None if the clip holds too little speech."""
        embedding = self.encoder.embed(wave, rate)
        return None if embedding is None else float(np.dot(embedding, self.voice))
