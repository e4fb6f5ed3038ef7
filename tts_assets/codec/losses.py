"""What a codec's reconstruction is measured by, and what keeps its codes in use."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from tts_assets.codec.xcodec2 import SAMPLE_RATE

RESOLUTIONS = ((2048, 160), (1024, 120), (512, 80), (256, 40))  # FFT size, mel bands
MEL_FLOOR, BIN_FLOOR = 1e-4, 1e-3  # 80 dB and 60 dB below a full-scale sine
LOG_WEIGHT, CONVERGENCE_WEIGHT = 0.25, 0.5
MEL_RESOLUTIONS = tuple((2**power, 5 * 2 ** (power - 5)) for power in range(5, 12))
SILENCE = 1e-6  # mean square: 60 dB below full scale
QUIET = 0.3  # added to the norm of a spectrum, so that silence does not divide by zero


class SpectralLoss(nn.Module):
    """Multi-resolution distance of magnitude spectra; phases are free.

    For every FFT size (hop a quarter of it): L1 of log-mel, L1 of log bins, and spectral
    convergence (norm of the difference over norm of the target). At 600 bit/s there is no phase
    to transmit; short windows make the decoder invent a coherent one. ``forward`` returns the
    weighted sum and the plain log-mel L1 (natural log), which reports quote.
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
        """Both (batch, samples) float32; returns two scalars."""
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
        """(batch, bins, frames), scaled so that noise has the same level at every size."""
        window = self.get_buffer(f"window_{size}")
        spectrum = torch.stft(waves, size, size // 4, window=window, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        return (power + 1e-9).sqrt() / (size / 4) ** 0.5


class MelLoss(nn.Module):
    """Multi-resolution mel L1 of DAC (Kumar et al., 2023): log10 of 5 to 320 bands, from windows
    of 32 to 2,048 samples, hops a quarter of them; the mean over the resolutions."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for size, bands in MEL_RESOLUTIONS:
            with warnings.catch_warnings():  # at 48 kHz the lowest bands are narrower than a bin
                warnings.simplefilter("ignore", UserWarning)
                mel = mel_filter_bank(size // 2 + 1, bands, 0.0, sample_rate / 2, sample_rate)
            filters = torch.tensor(mel, dtype=torch.float32).T
            self.register_buffer(f"mel_{size}", filters, persistent=False)
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, waves: Tensor, targets: Tensor) -> Tensor:
        """Both (batch, samples) float32; returns a scalar."""
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
    """Squared difference of levels (root mean square) in dB, the mean over clips; scalar.

    Levels below :data:`SILENCE` count as that, softly: of silence the loss is 0 and its gradient
    finite, where a plain logarithm would be at -200 dB and its gradient in the millions."""
    levels = [10 * (clips.square().mean(dim=-1) + SILENCE).log10() for clips in (waves, targets)]
    return (levels[0] - levels[1]).square().mean()


def spread_loss(latents: Tensor) -> Tensor:
    """Distance of the latents' mean from 0 and of their covariance from the identity.

    ``latents``: (batch, codes, dimensions), before the bound. Without it a learning rate of 1e-3
    drives them to a standard deviation of 40, where the quantizer is a sign function: 4 bits of
    entropy a code instead of 9.6 of 10.9 after as many steps.
    """
    flat = latents.float().flatten(0, 1)
    mean = flat.mean(dim=0)
    centred = flat - mean
    covariance = centred.T @ centred / len(flat)
    identity = torch.eye(len(covariance), device=flat.device)
    return mean.square().mean() + (covariance - identity).square().mean()
