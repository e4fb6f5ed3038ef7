"""Discriminators of the adversarial stage: of complex STFTs, and of periods (HiFi-GAN)."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tts_assets.codec.config import AdversarialConfig

SLOPE = 0.1  # of the leaky ReLU
COMPRESSION = 0.3  # exponent of the magnitudes: quiet harmonics matter as much as loud ones

WIDEST = 512  # channels of a period's judge

Judgement = tuple[Tensor, list[Tensor]]
Objective = Literal["hinge", "least_squares"]


class StftDiscriminator(nn.Module):
    """Judges patches of one STFT; frequency is strided by 32 in all, time by none."""

    window: Tensor

    def __init__(self, size: int, overlap: int, channels: int) -> None:
        super().__init__()
        self.size, self.hop, wide = size, size // overlap, 2 * channels
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

    def forward(self, waves: Tensor) -> Judgement:
        """Waveforms (batch, samples) to scores (batch, 1, frames, patches) and the features of
        every layer. A score is high for what is thought to be real."""
        hidden = self._spectrum(waves)
        features = []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), SLOPE)
            features.append(hidden)
        return self.output(hidden), features

    def _spectrum(self, waves: Tensor) -> Tensor:
        """(batch, 2, frames, bins): real and imaginary parts of the compressed spectrum."""
        spectrum = torch.stft(waves, self.size, self.hop, window=self.window, return_complex=True)
        parts = torch.view_as_real(spectrum * (4 / self.size**0.5)).permute(0, 3, 2, 1)
        power = parts.square().sum(1, keepdim=True) + 1e-5
        compressed = parts * power ** ((COMPRESSION - 1) / 2)
        return compressed[..., :-1].contiguous(memory_format=torch.channels_last)


class PeriodDiscriminator(nn.Module):
    """Judges a waveform folded into rows of ``period`` samples, along its columns alone.

    Source: Kong et al., HiFi-GAN (2020)."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(min(channels * 4**depth // 2, WIDEST) for depth in range(4))]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)))
            for a, b in itertools.pairwise(widths)
        )
        self.output = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waves: Tensor) -> Judgement:
        """Waveforms (batch, samples) to scores (batch, 1, rows, period) and features."""
        hidden = F.pad(waves.unsqueeze(1), (0, -waves.shape[-1] % self.period), "reflect")
        hidden = hidden.unflatten(-1, (-1, self.period))
        features = []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), SLOPE)
            features.append(hidden)
        return self.output(hidden), features


class Discriminators(nn.Module):
    """One judge for each FFT size and each period."""

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        spectral = [
            StftDiscriminator(size, config.overlap, config.channels) for size in config.sizes
        ]
        periodic = [PeriodDiscriminator(period, config.channels) for period in config.periods]
        self.judges = nn.ModuleList([*spectral, *periodic])

    def forward(self, waves: Tensor) -> list[Judgement]:
        return [judge(waves) for judge in self.judges]


def discriminator_loss(
    real: list[Tensor], made: list[Tensor], objective: Objective = "hinge"
) -> Tensor:
    """Of the judges' scores: hinge wants them above 1 for real audio and below -1 for made audio,
    least squares (LSGAN) at 1 and at 0."""
    if objective == "hinge":
        losses = [
            F.relu(1 - true).mean() + F.relu(1 + false).mean()
            for true, false in zip(real, made, strict=True)
        ]
    else:
        losses = [
            (1 - true).square().mean() + false.square().mean()
            for true, false in zip(real, made, strict=True)
        ]
    return torch.stack(losses).mean()


def generator_losses(
    real: list[Judgement], made: list[Judgement], objective: Objective = "hinge"
) -> tuple[Tensor, Tensor]:
    """The adversarial loss, and the relative L1 distance of the judges' features."""
    short = [1 - score for score, _ in made]  # of what is thought to be real
    pushed = [F.relu(s).mean() if objective == "hinge" else s.square().mean() for s in short]
    adversarial = torch.stack(pushed).mean()
    distances = [
        (have.float() - want.float()).abs().mean() / (want.float().abs().mean() + 1e-3)
        for (_, wanted), (_, had) in zip(real, made, strict=True)
        for want, have in zip(wanted, had, strict=True)
    ]
    return adversarial, torch.stack(distances).mean()
