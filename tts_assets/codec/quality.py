"""How near a resynthesis is to its original, signal by signal: STOI, PESQ, mel, pitch.

Both are clips at 16 kHz, (samples,), of one length: see :func:`aligned`. A figure that a clip is
too short or too silent for is None.

How much of a codebook is in use: entropy, perplexity, and the codes that never occur.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from tts_assets.codec.losses import SpectralLoss
from tts_assets.codec.xcodec2 import SAMPLE_RATE
from tts_assets.core.audio import Wave, resample

PITCH_RANGE = (65.0, 500.0)  # Hz: low men's to children's voices
PITCH_FRAME = 1024  # samples at 16 kHz


class PitchError(NamedTuple):
    """``cents``: mean absolute error where both are voiced (100 a semitone); ``voicing``: share of
    frames that are voiced in one and not in the other."""

    cents: float
    voicing: float


def aligned(original: Wave, made: Wave, rate: int) -> tuple[Wave, Wave]:
    """Both at 16 kHz and of one length."""
    at_rate = [
        w if rate == SAMPLE_RATE else resample(w, rate, SAMPLE_RATE) for w in (original, made)
    ]
    length = min(map(len, at_rate))
    return at_rate[0][:length], at_rate[1][:length]


def stoi(original: Wave, made: Wave) -> float | None:
    """Short-time objective intelligibility, 0 to 1, of clips at 16 kHz (Taal et al., 2011); None
    where less than 0.4 s is speech."""
    from pystoi import stoi as measure

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # "not enough frames", and returns 1e-5
        try:
            return float(measure(original, made, SAMPLE_RATE))
        except RuntimeWarning:
            return None


@cache
def knows_pesq() -> bool:
    """Whether the package ``pesq`` is installed: it has to be compiled (extra ``pesq``)."""
    try:
        import pesq
    except ImportError:
        return False
    return bool(pesq)


def pesq(original: Wave, made: Wave) -> float | None:
    """Wide-band PESQ (ITU-T P.862.2), 1 to 4.64, of clips at 16 kHz; None where it finds no
    utterance, or is not installed."""
    if not knows_pesq() or len(original) < SAMPLE_RATE // 4:
        return None
    from pesq import BufferTooShortError, NoUtterancesError
    from pesq import pesq as measure

    try:
        score = float(measure(SAMPLE_RATE, original, made, "wb"))
    except (BufferTooShortError, NoUtterancesError):
        return None
    return score if math.isfinite(score) else None


def mel_distance(original: Wave, made: Wave) -> float:
    """Multi-resolution log-mel L1 (natural logarithm) of clips at 16 kHz."""
    pair = [torch.from_numpy(np.ascontiguousarray(w)).unsqueeze(0) for w in (made, original)]
    return float(spectral_loss()(*pair)[1])


@cache
def spectral_loss() -> SpectralLoss:
    return SpectralLoss()


def pitch(wave: Wave) -> NDArray[np.float64]:
    """Hz every 16 ms of a clip at 16 kHz, NaN where it is not voiced (pYIN, Mauch and Dixon 2014,
    in librosa)."""
    from librosa import pyin

    low, high = PITCH_RANGE
    frequencies, _, _ = pyin(
        np.pad(wave, (0, max(0, PITCH_FRAME - len(wave)))),
        fmin=low,
        fmax=high,
        sr=SAMPLE_RATE,
        frame_length=PITCH_FRAME,
        resolution=0.2,  # of a semitone: 20 cents; three times as fast as the default
    )
    return np.asarray(frequencies, dtype=np.float64)


def pitch_error(original: NDArray[np.float64], made: NDArray[np.float64]) -> PitchError | None:
    """Of two courses of :func:`pitch`; None where no frame is voiced in both."""
    length = min(len(original), len(made))
    voiced = [~np.isnan(course[:length]) for course in (original, made)]
    both = voiced[0] & voiced[1]
    if not both.any():
        return None
    octaves = np.log2(made[:length][both] / original[:length][both])
    return PitchError(float(1200 * np.abs(octaves).mean()), float((voiced[0] ^ voiced[1]).mean()))


def bit_rate(token_rate: float, codebook_size: int) -> float:
    """Bits a second of codes that are stored as they are."""
    return token_rate * math.log2(codebook_size)


class CodeUsage(nn.Module):
    """Counts of the codes since the last report; a part of checkpoints, so that a resumed run
    reports what an uninterrupted one does."""

    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebook_size, dtype=torch.int64))

    def add(self, codes: Tensor) -> None:
        """Codes of any shape."""
        self.counts += codes.flatten().long().bincount(minlength=len(self.counts))

    def gather(self, ranks: int, is_main: bool) -> None:
        """Rank 0 takes over what the others have counted."""
        if ranks > 1:
            dist.all_reduce(self.counts)
            if not is_main:
                self.counts.zero_()

    def figures(self, ranks: int) -> dict[str, float]:
        """:func:`usage` of the counts of all ranks."""
        counts = self.counts.clone()
        if ranks > 1:
            dist.all_reduce(counts)
        return usage(counts.cpu().numpy())


def usage(counts: NDArray[np.integer[Any]]) -> dict[str, float]:
    """``entropy`` in bits a code, ``perplexity`` (2 to its power: as many codes, used alike, would
    say as much), ``codes_used`` and ``dead_codes``. ``counts``: (codebook size,)."""
    seen = counts[counts > 0]
    shares = seen / seen.sum()
    entropy = float(-(shares * np.log2(shares)).sum())
    return {
        "entropy": round(entropy, 6),
        "perplexity": round(2**entropy, 4),
        "codes_used": len(seen),
        "dead_codes": len(counts) - len(seen),
    }


def count_codes(clips: Iterable[NDArray[np.integer[Any]]], size: int) -> NDArray[np.int64]:
    """How often each code of a codebook occurs in clips, (size,)."""
    counts = np.zeros(size, dtype=np.int64)
    for codes in clips:
        counts += np.bincount(codes, minlength=size)
    return counts
