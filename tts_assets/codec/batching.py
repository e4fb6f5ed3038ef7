"""Padded batches of clips whose codes are those of every clip alone, to the last one.

Masks make a clip's latents in a batch equal to those alone but for rounding (see ``masking.py``):
other shapes take other paths through the same sums. That flips a code where a latent lies on the
boundary between two levels. So every latent's distance to its nearest boundary is looked at, and
a clip that comes nearer than :data:`SAFETY` times the largest difference seen is encoded again,
alone. What "alone" gives is by definition right: one clip, one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_assets.codec.model import Codec, Codes, Wave

SAFETY = 10.0  # doubtful: nearer to a boundary than so many times the largest difference seen
PROBED = 4  # clips that are encoded both ways before any batch is believed


class RoundingError(RuntimeError):
    """Batches round so differently that their codes are not certain."""


@dataclass
class Effort:
    """What encoding took: clips encoded, of them again alone; codes, padded codes of batches."""

    clips: int = 0
    again: int = 0
    codes: int = 0
    padded: int = 0


class BatchEncoder:
    """Encodes clips together with the codes that :meth:`Codec.encode` gives each alone."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.effort = Effort()
        self.probes = 0
        self.difference = 0.0  # largest seen between batch and alone, in quantization levels

    @property
    def tolerance(self) -> float:
        """In quantization levels; boundaries lie 1 apart."""
        return SAFETY * self.difference

    def encode(self, waves: Sequence[Wave]) -> list[Codes]:
        """Waveforms at 16 kHz to codes, padded to the longest: call it with similar lengths."""
        counts = [self.codec.codes(len(wave)) for wave in waves]
        self.effort.clips += len(waves)
        self.effort.codes += sum(counts)
        self.effort.padded += len(waves) * max(counts)
        if len(waves) == 1 or self.codec.obstacle:
            return [self._alone(wave)[1] for wave in waves]
        latents = self.codec.latents(waves)
        codes = self.codec.quantize(latents)
        levels = self.codec.levels(latents)
        margins = distance_to_boundary(levels)
        chosen = []
        for row, (wave, count) in enumerate(zip(waves, counts, strict=True)):
            clip = codes[row, :count]
            probe = self.probes < PROBED
            if probe or margins[row, :count].min() < self.tolerance:
                clip = self._again(wave, levels[row, :count], probe)
            chosen.append(clip)
        return chosen

    def _alone(self, wave: Wave) -> tuple[Tensor, Codes]:
        """Levels (codes, dimensions) and codes."""
        count = self.codec.codes(len(wave))
        with one_thread():
            latents = self.codec.latents([wave])[:, :count]
            return self.codec.levels(latents)[0], self.codec.quantize(latents)[0]

    def _again(self, wave: Wave, together: Tensor, probe: bool) -> Codes:
        """The codes of a doubtful clip, and what its two results tell of rounding."""
        levels, codes = self._alone(wave)
        difference = float((levels - together).abs().max())
        if not probe and not difference <= self.tolerance:
            raise RoundingError(
                f"a clip's latents differ by {difference:.1e} levels alone and in a batch, but by "
                f"at most {self.difference:.1e} before: codes of batches are not certain. Write "
                "batch_codes = 1 under [codec]: clips are then encoded one by one"
            )
        self.probes += probe
        self.effort.again += 1
        self.difference = max(self.difference, difference)
        return codes


def distance_to_boundary(levels: Tensor) -> NDArray[np.float32]:
    """Levels (clips, codes, dimensions) to the distance of each code's nearest latent from where
    rounding changes, (clips, codes)."""
    distances = 0.5 - (levels - levels.round()).abs()
    return distances.amin(dim=-1).cpu().numpy()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are split among threads: with one their rounding is the same on every machine size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
