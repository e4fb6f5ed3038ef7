"""Losses of codec training, and metrics of resyntheses.

Losses are those of reconstruction, of the use of all codes, and of discriminators. Decoders have
losses of their own (``decoder.py``).

All losses take float32 waveforms (batch, samples) in [-1, 1], except :func:`covariance_loss`.
The discriminators look at complex STFTs and at periods.

Sources: Défossez et al., EnCodec (2022), for the STFT discriminators; Kong et al., HiFi-GAN (2020),
for the period discriminators and feature matching.

Metrics of a resynthesis are intrusive. STOI, PESQ, mel and STFT distance, and pitch error compare
two clips at 16 kHz, (samples,), of the same length (see :func:`aligned`). A metric is None if a
clip is too short or too quiet for it. The usage of a codebook is described by entropy, perplexity,
and the number of codes that never occur.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.audio_utils import mel_filter_bank

from tts_assets.audio_models.pitch import track_pitch
from tts_assets.codec.training_config import DiscriminatorSizes
from tts_assets.codec.xcodec2 import SAMPLE_RATE
from tts_assets.core.audio import Wave, resample

RESOLUTIONS = ((2048, 160), (1024, 120), (512, 80), (256, 40))  # FFT size, mel bands
MEL_FLOOR, BIN_FLOOR = 1e-4, 1e-3  # magnitudes 80 dB and 60 dB below a full-scale sine
LOG_WEIGHT, CONVERGENCE_WEIGHT = 0.25, 0.5
QUIET = 0.3  # added to the norm of a spectrum, so that silence does not divide by zero
PITCH_RANGE = (65.0, 500.0)  # Hz: from low male to children's voices
PITCH_FRAME = 1024  # samples at 16 kHz
STFT_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # FFT, hop, window
MAGNITUDE_FLOOR = 1e-4  # 16-bit silence has magnitudes below it


class SpectralLoss(nn.Module):
    """Multi-resolution distance of magnitude spectra (Yamamoto et al., 2020); phases are free.

    For every FFT size, with a hop of a quarter of it: L1 of log-mel, L1 of log bins, and spectral
    convergence (norm of the difference / norm of the target). At 600 bit/s no phase can be
    transmitted; the short windows make the decoder generate a coherent one.
    """

    def __init__(self) -> None:
        super().__init__()
        for size, bands in RESOLUTIONS:
            mel = mel_filter_bank(size // 2 + 1, bands, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE)
            filters = torch.tensor(mel, dtype=torch.float32).T
            filters = filters / filters.sum(dim=1, keepdim=True).clamp_min(1e-8)
            self.register_buffer(f"mel_{size}", filters, persistent=False)
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, waves: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return two scalars: the weighted sum, and the log-mel L1 (natural log) of reports."""
        parts = [self._at(size, waves, targets) for size, _ in RESOLUTIONS]
        mel, log, convergence = (torch.stack(part).mean() for part in zip(*parts, strict=True))
        loss = mel + LOG_WEIGHT * log + CONVERGENCE_WEIGHT * convergence
        return loss, mel.detach()

    def _at(self, size: int, waves: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        filters = self.get_buffer(f"mel_{size}")
        made = self._magnitudes(waves, size)
        with torch.no_grad():
            true = self._magnitudes(targets, size)
            true_mel = (filters @ true + MEL_FLOOR).log()
        mel = ((filters @ made + MEL_FLOOR).log() - true_mel).abs().mean()
        log = ((made + BIN_FLOOR).log() - (true + BIN_FLOOR).log()).abs().mean()
        difference = (made - true).square().sum((1, 2)).sqrt()
        norm = true.square().sum((1, 2)).sqrt() + QUIET
        return mel, log, (difference / norm).mean()

    def _magnitudes(self, waves: Tensor, size: int) -> Tensor:
        """(batch, bins, frames), scaled so that noise has the same level at every FFT size."""
        power = stft_power(waves, size, size // 4, self.get_buffer(f"window_{size}"))
        return (power + 1e-9).sqrt() / (size / 4) ** 0.5


def stft_power(waves: Tensor, size: int, hop: int, window: Tensor) -> Tensor:
    """Squared magnitudes of the STFT of (batch, samples): (batch, bins, frames)."""
    spectrum = torch.stft(waves, size, hop, window=window, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(-1)


def covariance_loss(latents: Tensor) -> Tensor:
    """Distance of the latents' mean from 0 and of their covariance from the identity; a scalar.

    ``latents``: (batch, codes, dimensions), before the quantizer's bound. Without this loss a
    learning rate of 1e-3 drives the latents to a standard deviation of 40, where the quantizer acts
    as a sign function: the entropy is then 4 bits per code instead of 9.6 (of at most 10.9).
    """
    flat = latents.float().flatten(0, 1)
    mean = flat.mean(dim=0)
    centred = flat - mean
    covariance = centred.T @ centred / len(flat)
    identity = torch.eye(len(covariance), device=flat.device)
    return mean.square().mean() + (covariance - identity).square().mean()


SLOPE = 0.1  # of the leaky ReLU
COMPRESSION = 0.3  # exponent of the magnitudes, so that quiet harmonics count as much as loud ones
WIDEST = 512  # channels of a period discriminator at most

Scored = tuple[Tensor, list[Tensor]]
"""The output of one discriminator: its scores, and the features of every layer."""


class StftDiscriminator(nn.Module):
    """Scores patches of one STFT; frequency is strided by 32 in all, time is not strided."""

    window: Tensor

    def __init__(self, size: int, channels: int) -> None:
        """``size``: FFT size in samples, four times the hop."""
        super().__init__()
        self.size, self.hop, wide = size, size // 4, 2 * channels
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        shapes = [
            (2, channels, (3, 8), (1, 4), (1, 2)),
            (channels, wide, (3, 8), (1, 4), (1, 2)),
            (wide, wide, (3, 5), (1, 2), (1, 2)),
            (wide, wide, (3, 3), (1, 1), (1, 1)),
        ]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, kernel, stride, padding))
            for a, b, kernel, stride, padding in shapes
        )
        self.output = weight_norm(nn.Conv2d(wide, 1, (3, 3), padding=(1, 1)))

    def forward(self, waves: Tensor) -> Scored:
        """Waveforms (batch, samples) to scores (batch, 1, frames, patches) and features.

        A high score means that the patch looks recorded.
        """
        return _score(self.layers, self.output, self._spectrum(waves))

    def _spectrum(self, waves: Tensor) -> Tensor:
        """(batch, 2, frames, bins): real and imaginary parts of the compressed spectrum."""
        spectrum = torch.stft(waves, self.size, self.hop, window=self.window, return_complex=True)
        parts = torch.view_as_real(spectrum * (4 / self.size**0.5)).permute(0, 3, 2, 1)
        power = parts.square().sum(1, keepdim=True) + 1e-5
        compressed = parts * power ** ((COMPRESSION - 1) / 2)
        return compressed[..., :-1].contiguous(memory_format=torch.channels_last)


class PeriodDiscriminator(nn.Module):
    """Scores a waveform that is folded into rows of ``period`` samples, along its columns."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(min(channels * 4**depth // 2, WIDEST) for depth in range(4))]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)))
            for a, b in itertools.pairwise(widths)
        )
        self.output = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waves: Tensor) -> Scored:
        """Waveforms (batch, samples) to scores (batch, 1, rows, period) and features."""
        hidden = F.pad(waves.unsqueeze(1), (0, -waves.shape[-1] % self.period), "reflect")
        return _score(self.layers, self.output, hidden.unflatten(-1, (-1, self.period)))


def _score(layers: nn.ModuleList, output: nn.Module, hidden: Tensor) -> Scored:
    features = []
    for layer in layers:
        hidden = F.leaky_relu(layer(hidden), SLOPE)
        features.append(hidden)
    return output(hidden), features


class Discriminators(nn.Module):
    """One discriminator for each FFT size and each period of the configuration, and the losses."""

    def __init__(self, sizes: DiscriminatorSizes) -> None:
        super().__init__()
        # Checkpoints of earlier runs have the parameters under this name.
        self.add_module("judges", nn.ModuleList(self.build(sizes)))

    def build(self, sizes: DiscriminatorSizes) -> list[nn.Module]:
        """The discriminators."""
        spectral = [StftDiscriminator(size, sizes.channels) for size in sizes.sizes]
        periodic = [PeriodDiscriminator(period, sizes.channels) for period in sizes.periods]
        return [*spectral, *periodic]

    def forward(self, waves: Tensor) -> list[Scored]:
        """Waveforms (batch, samples) to the output of each discriminator."""
        return [one(waves) for one in self.get_submodule("judges").children()]

    @staticmethod
    def loss(real: list[Tensor], generated: list[Tensor]) -> Tensor:
        """The hinge loss of the discriminators, a scalar: the mean over discriminators.

        ``real`` and ``generated`` are their scores of recordings, which are to be above 1, and of
        generated audio, which are to be below -1.
        """
        pairs = zip(real, generated, strict=True)
        losses = [F.relu(1 - true).mean() + F.relu(1 + false).mean() for true, false in pairs]
        return torch.stack(losses).mean()

    @staticmethod
    def generator_losses(real: list[Scored], generated: list[Scored]) -> tuple[Tensor, Tensor]:
        """The adversarial and the feature matching loss of the generator, two scalars.

        Feature matching is the L1 distance of features relative to the mean magnitude of the
        recording's features. Generated windows after those of the recordings have no features to
        match.
        """
        adversarial = torch.stack([F.relu(1 - score).mean() for score, _ in generated]).mean()
        distances = [
            (have[: len(want)].float() - want.float()).abs().mean()
            / (want.float().abs().mean() + 1e-3)
            for (_, wanted), (_, had) in zip(real, generated, strict=True)
            for want, have in zip(wanted, had, strict=True)
        ]
        return adversarial, torch.stack(distances).mean()


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
