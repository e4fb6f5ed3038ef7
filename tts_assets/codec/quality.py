"""Intrusive metrics of a resynthesis, and statistics of a codebook's usage.

STOI, PESQ, mel and STFT distance, and pitch error compare two clips at 16 kHz, (samples,), of the
same length (see :func:`aligned`). A metric is None if a clip is too short or too quiet for it. The
usage of a codebook is described by entropy, perplexity, and the number of codes that never occur.
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

from tts_assets.audio_models.pitch import track_pitch
from tts_assets.codec.losses import SpectralLoss
from tts_assets.codec.xcodec2 import SAMPLE_RATE
from tts_assets.core.audio import Wave, resample

PITCH_RANGE = (65.0, 500.0)  # Hz: from low male to children's voices
PITCH_FRAME = 1024  # samples at 16 kHz
STFT_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # FFT, hop, window
MAGNITUDE_FLOOR = 1e-4  # 16-bit silence has magnitudes below it


class PitchError(NamedTuple):
    """Differences of two pitch contours.

    ``cents``: mean absolute error of frames voiced in both (100 cents are a semitone); ``voicing``:
    fraction of frames that are voiced in one only.
    """

    cents: float
    voicing: float


def aligned(original: Wave, made: Wave, rate: int) -> tuple[Wave, Wave]:
    """Both clips resampled from ``rate`` to 16 kHz and cut to the shorter length."""
    at_rate = [
        w if rate == SAMPLE_RATE else resample(w, rate, SAMPLE_RATE) for w in (original, made)
    ]
    length = min(map(len, at_rate))
    return at_rate[0][:length], at_rate[1][:length]


def stoi(original: Wave, made: Wave) -> float | None:
    """Short-time objective intelligibility, 0 to 1 (Taal et al., 2011).

    None if less than 0.4 s of the clip is speech.
    """
    from pystoi import stoi as measure

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # "Not enough STFT frames": it returns 1e-5
        try:
            return float(measure(original, made, SAMPLE_RATE))
        except RuntimeWarning:
            return None


@cache
def knows_pesq() -> bool:
    """Whether the package ``pesq`` (the extra ``pesq``, which needs a compiler) is installed."""
    try:
        import pesq
    except ImportError:
        return False
    return bool(pesq)


def pesq(original: Wave, made: Wave) -> float | None:
    """Wide-band PESQ (ITU-T P.862.2), 1 to 4.64.

    None if PESQ finds no utterance, or if the package is not installed.
    """
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
    """Multi-resolution log-mel L1 (natural logarithm): the second value of SpectralLoss."""
    pair = [torch.from_numpy(np.ascontiguousarray(w)).unsqueeze(0) for w in (made, original)]
    return float(spectral_loss()(*pair)[1])


def stft_distance(original: Wave, made: Wave) -> float:
    """Spectral convergence plus L1 of log magnitudes, the mean over :data:`STFT_RESOLUTIONS`.

    Source: Yamamoto et al., Parallel WaveGAN (2020). Clips have at least 1,024 samples.
    """
    distances = []
    for size, hop, length in STFT_RESOLUTIONS:
        window = torch.hann_window(length)
        true, found = (
            torch.stft(torch.from_numpy(w.copy()), size, hop, length, window, return_complex=True)
            .abs()
            .clamp_min(MAGNITUDE_FLOOR)
            for w in (original, made)
        )
        convergence = torch.linalg.norm(true - found) / torch.linalg.norm(true)
        distances.append(float(convergence + (true.log() - found.log()).abs().mean()))
    return float(np.mean(distances))


@cache
def spectral_loss() -> SpectralLoss:
    """One instance for all clips."""
    return SpectralLoss()


def pitch(wave: Wave) -> NDArray[np.float64]:
    """The pitch in Hz every 16 ms, NaN in unvoiced frames (pYIN, Mauch and Dixon, 2014)."""
    low, high = PITCH_RANGE
    frequencies, _ = track_pitch(
        np.pad(wave, (0, max(0, PITCH_FRAME - len(wave)))),
        low=low,
        high=high,
        rate=SAMPLE_RATE,
        frame_length=PITCH_FRAME,
        resolution=0.2,  # semitones, 20 cents: three times as fast as the default
    )
    return frequencies


def pitch_error(original: NDArray[np.float64], made: NDArray[np.float64]) -> PitchError | None:
    """The difference of two contours (frames,) in Hz of :func:`pitch`; NaN is unvoiced.

    None if no frame is voiced in both.
    """
    length = min(len(original), len(made))
    voiced = [~np.isnan(contour[:length]) for contour in (original, made)]
    both = voiced[0] & voiced[1]
    if not both.any():
        return None
    octaves = np.log2(made[:length][both] / original[:length][both])
    return PitchError(float(1200 * np.abs(octaves).mean()), float((voiced[0] ^ voiced[1]).mean()))


def bit_rate(token_rate: float, sizes: tuple[int, ...]) -> float:
    """Bits per second of codes without entropy coding.

    ``sizes``: the number of different codes at each position of a frame.
    """
    return token_rate * math.log2(math.prod(sizes)) / len(sizes)


class CodeUsage(nn.Module):
    """Counts codes since the last report.

    It is part of checkpoints, so a resumed run reports the same as an uninterrupted one.
    """

    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebook_size, dtype=torch.int64))

    def add(self, codes: Tensor) -> None:
        """Count codes of any shape."""
        self.counts += codes.flatten().long().bincount(minlength=len(self.counts))

    def gather(self, ranks: int, is_main: bool) -> None:
        """Move the counts of all ranks to rank 0; the other ranks start from zero."""
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


def usage(counts: NDArray[np.integer[Any]], positions: int = 1) -> dict[str, float]:
    """Statistics of ``counts`` (codebook size,) of whole frames of ``positions`` codes.

    ``entropy`` in bits per code whose position is known, ``perplexity`` (2 ** entropy: the number
    of equally frequent codes with the same entropy), ``codes_used`` and ``dead_codes``.
    """
    seen = counts[counts > 0]
    probabilities = seen / seen.sum()
    entropy = float(-(probabilities * np.log2(probabilities)).sum()) - math.log2(positions)
    return {
        "entropy": round(entropy, 6),
        "perplexity": round(2**entropy, 4),
        "codes_used": len(seen),
        "dead_codes": len(counts) - len(seen),
    }


def count_codes(clips: Iterable[NDArray[np.integer[Any]]], size: int) -> NDArray[np.int64]:
    """How often each code of a codebook of ``size`` codes occurs in clips, (size,)."""
    counts = np.zeros(size, dtype=np.int64)
    for codes in clips:
        counts += np.bincount(codes, minlength=size)
    return counts
