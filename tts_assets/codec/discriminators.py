"""Discriminators of complex STFTs and of periods, and the adversarial losses.

Sources: Défossez et al., EnCodec (2022), for the STFT discriminators; Kong et al., HiFi-GAN (2020),
for the period discriminators and feature matching; Mao et al., LSGAN (2017), for least squares.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tts_assets.codec.config import AdversarialConfig, Objective

SLOPE = 0.1  # of the leaky ReLU
COMPRESSION = 0.3  # exponent of the magnitudes, so that quiet harmonics count as much as loud ones
WIDEST = 512  # channels of a period discriminator at most

Scored = tuple[Tensor, list[Tensor]]
"""The output of one discriminator: its scores, and the features of every layer."""


class StftDiscriminator(nn.Module):
    """Scores patches of one STFT; frequency is strided by 32 in all, time is not strided."""

    window: Tensor

    def __init__(self, size: int, overlap: int, channels: int) -> None:
        """``size``: FFT size in samples; ``overlap``: FFT size / hop."""
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
    """One discriminator for each FFT size and each period of the configuration."""

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        spectral = [
            StftDiscriminator(size, config.overlap, config.channels) for size in config.sizes
        ]
        periodic = [PeriodDiscriminator(period, config.channels) for period in config.periods]
        # Checkpoints of earlier runs have the parameters under this name.
        self.add_module("judges", nn.ModuleList([*spectral, *periodic]))

    def forward(self, waves: Tensor) -> list[Scored]:
        """Waveforms (batch, samples) to the output of each discriminator."""
        return [one(waves) for one in self.get_submodule("judges").children()]


def discriminator_loss(
    real: list[Tensor], generated: list[Tensor], objective: Objective = "hinge"
) -> Tensor:
    """The loss of the discriminators, a scalar: the mean over discriminators.

    ``real`` and ``generated`` are their scores of recordings and of generated audio. Hinge wants
    them above 1 and below -1, least squares wants 1 and 0.
    """
    pairs = zip(real, generated, strict=True)
    if objective == "hinge":
        losses = [F.relu(1 - true).mean() + F.relu(1 + false).mean() for true, false in pairs]
    else:
        losses = [(1 - true).square().mean() + false.square().mean() for true, false in pairs]
    return torch.stack(losses).mean()


def generator_losses(
    real: list[Scored], generated: list[Scored], objective: Objective = "hinge"
) -> tuple[Tensor, Tensor]:
    """The adversarial and the feature matching loss of the generator, two scalars.

    Feature matching is the L1 distance of features relative to the mean magnitude of the
    recording's features.
    """
    short = [1 - score for score, _ in generated]  # distance to the score of a recording
    losses = [F.relu(s).mean() if objective == "hinge" else s.square().mean() for s in short]
    adversarial = torch.stack(losses).mean()
    distances = [
        (have.float() - want.float()).abs().mean() / (want.float().abs().mean() + 1e-3)
        for (_, wanted), (_, had) in zip(real, generated, strict=True)
        for want, have in zip(wanted, had, strict=True)
    ]
    return adversarial, torch.stack(distances).mean()
