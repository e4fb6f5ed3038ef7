"""Losses of a reconstruction, and the loss that keeps all codes in use.

All losses take float32 waveforms (batch, samples) in [-1, 1], except :func:`covariance_loss`.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from tts_assets.codec.xcodec2 import SAMPLE_RATE

RESOLUTIONS = ((2048, 160), (1024, 120), (512, 80), (256, 40))  # FFT size, mel bands
MEL_FLOOR, BIN_FLOOR = 1e-4, 1e-3  # magnitudes 80 dB and 60 dB below a full-scale sine
LOG_WEIGHT, CONVERGENCE_WEIGHT = 0.25, 0.5
MEL_RESOLUTIONS = tuple((2**power, 5 * 2 ** (power - 5)) for power in range(5, 12))
SILENCE = 1e-6  # mean square: 60 dB below full scale
QUIET = 0.3  # added to the norm of a spectrum, so that silence does not divide by zero


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
        window = self.get_buffer(f"window_{size}")
        spectrum = torch.stft(waves, size, size // 4, window=window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        return (power + 1e-9).sqrt() / (size / 4) ** 0.5


class MelLoss(nn.Module):
    """Multi-resolution log10-mel L1 of DAC (Kumar et al., 2023), the mean over the resolutions.

    Windows have 32 to 2,048 samples with hops of a quarter, and 5 to 320 mel bands.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for size, bands in MEL_RESOLUTIONS:
            with (
                warnings.catch_warnings()
            ):  # at 48 kHz the lowest mel bands are narrower than a bin
                warnings.simplefilter("ignore", UserWarning)
                mel = mel_filter_bank(size // 2 + 1, bands, 0.0, sample_rate / 2, sample_rate)
            filters = torch.tensor(mel, dtype=torch.float32).T
            self.register_buffer(f"mel_{size}", filters, persistent=False)
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, waves: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        distances = [
            (self._mel(size, waves) - self._mel(size, targets)).abs().mean()
            for size, _ in MEL_RESOLUTIONS
        ]
        return torch.stack(distances).mean()

    def _mel(self, size: int, waves: Tensor) -> Tensor:
        window = self.get_buffer(f"window_{size}")
        spectrum = torch.stft(waves, size, size // 4, window=window, return_complex=True)
        magnitudes = (torch.view_as_real(spectrum).square().sum(-1) + 1e-12).sqrt()
        return (self.get_buffer(f"mel_{size}") @ magnitudes).clamp_min(1e-5).log10()


def loudness_loss(waves: Tensor, targets: Tensor) -> Tensor:
    """Squared difference of the RMS levels in dB, the mean over clips; a scalar.

    :data:`SILENCE` is added to the power. Between two silent clips the loss is therefore 0 and its
    gradient finite; a plain logarithm would be at -200 dB with a gradient in the millions.
    """
    levels = [10 * (clips.square().mean(dim=-1) + SILENCE).log10() for clips in (waves, targets)]
    return (levels[0] - levels[1]).square().mean()


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
