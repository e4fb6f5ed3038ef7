"""Losses of decoder training, equal by number to those of the reference trainer.

The reference is inworld-ai/tts at commit 6a3d36c (``tts/core/codec/decoder.py``, ``criterion.py``
and ``discriminator.py``): the sum of seven mel distances with weight 15, the squared difference of
levels in dB, least squares (Mao et al., LSGAN, 2017) and feature matching as sums over all
discriminators. The only difference is what happens with silence (see :func:`level_loss`).

All losses take float32 waveforms (batch, samples) in [-1, 1] and return scalars.
"""

from __future__ import annotations

import itertools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.audio_utils import mel_filter_bank

from tts_assets.codec.losses import Discriminators, Scored, stft_power
from tts_assets.codec.training_config import AdversarialConfig

MEL_RESOLUTIONS = tuple((2**power, 5 * 2 ** (power - 5)) for power in range(5, 12))
MEL_FLOOR = 1e-5
POWER_FLOOR = 1e-10  # added to a mean square: 100 dB below full scale
SILENCE = 1e-6  # mean square of a recording that counts as silence: 60 dB below full scale
MAGNITUDES = (1e-7, 1e3)  # limits of a squared magnitude that a discriminator sees
STEPS = (2, 2, 2, 2)  # strides of a discriminator of spectrograms, in frequency and in time
PERIOD_STEPS = (3, 3, 3, 3, 1)  # strides of a discriminator of periods
WIDEST = 512  # channels of a discriminator at most
SPECTRAL_SLOPE, PERIODIC_SLOPE = 0.2, 0.1  # of the leaky ReLUs
SPECTRAL_DEVIATION = 0.02  # of the initial weights of a discriminator of spectrograms


class MelLoss(nn.Module):
    """Multi-resolution log10-mel L1 of DAC (Kumar et al., 2023), the sum over the resolutions.

    Windows have 32 to 2,048 samples with hops of a quarter, and 5 to 320 mel bands on Slaney's
    scale with filters of equal area.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for size, bands in MEL_RESOLUTIONS:
            with warnings.catch_warnings():  # the lowest bands are narrower than a bin
                warnings.simplefilter("ignore", UserWarning)
                mel = mel_filter_bank(
                    size // 2 + 1,
                    bands,
                    0.0,
                    sample_rate / 2,
                    sample_rate,
                    norm="slaney",
                    mel_scale="slaney",
                )
            filters = torch.tensor(mel, dtype=torch.float32).T
            self.register_buffer(f"mel_{size}", filters, persistent=False)
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, waves: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        distances = [
            (self._mel(size, waves) - self._mel(size, targets)).abs().mean()
            for size, _ in MEL_RESOLUTIONS
        ]
        return torch.stack(distances).sum()

    def _mel(self, size: int, waves: Tensor) -> Tensor:
        power = stft_power(waves, size, size // 4, self.get_buffer(f"window_{size}"))
        # The smallest number keeps the gradient of a root finite; it is far below MEL_FLOOR.
        magnitudes = (power + 1e-16).sqrt()
        return (self.get_buffer(f"mel_{size}") @ magnitudes).clamp_min(MEL_FLOOR).log10()


def level_loss(waves: Tensor, targets: Tensor) -> Tensor:
    """Squared difference of the RMS levels in dB, the mean over clips; a scalar.

    The reference adds 1e-10 to the RMS. On a silent clip its gradient is not finite, or in the
    millions. Here a recording below :data:`SILENCE` is compared with this power added to both
    sides: the loss of two silent clips is 0, and its gradient is finite.
    """
    power = targets.square().mean(dim=-1)
    floor = torch.where(power < SILENCE, SILENCE, POWER_FLOOR)
    wanted = 10 * (power + floor).log10()
    level = 10 * (waves.square().mean(dim=-1) + floor).log10()
    return (level - wanted).square().mean()


class SpectrogramDiscriminator(nn.Module):
    """Scores patches of a magnitude spectrogram; a hop is half of the FFT size."""

    window: Tensor

    def __init__(self, size: int, channels: int) -> None:
        """``size``: FFT size in samples; ``channels``: of the first layer."""
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        widths = [1, *(min(channels * 2**depth, WIDEST) for depth in range(len(STEPS)))]
        wide = min(2 * widths[-1], WIDEST)
        layers = [
            nn.Conv2d(a, b, 5, step, 2)
            for (a, b), step in zip(itertools.pairwise(widths), STEPS, strict=True)
        ]
        layers.append(nn.Conv2d(widths[-1], wide, 3, padding=1))
        output = nn.Conv2d(wide, 1, 3, padding=1)
        for layer in (*layers, output):
            nn.init.normal_(layer.weight, std=SPECTRAL_DEVIATION)
        self.layers, self.output = nn.ModuleList(map(weight_norm, layers)), weight_norm(output)

    def forward(self, waves: Tensor) -> Scored:
        """Waveforms (batch, samples) to scores (batch, 1, bands, frames) and five features."""
        power = stft_power(waves, self.size, self.size // 2, self.window).clamp(*MAGNITUDES)
        return _score(self.layers, self.output, power.sqrt().unsqueeze(1), SPECTRAL_SLOPE)


class PeriodDiscriminator(nn.Module):
    """Scores a waveform that is folded into rows of ``period`` samples (HiFi-GAN)."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(min(channels * 4**depth, WIDEST) for depth in range(len(PERIOD_STEPS)))]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (step, 1), (2, 0)))
            for (a, b), step in zip(itertools.pairwise(widths), PERIOD_STEPS, strict=True)
        )
        self.output = weight_norm(nn.Conv2d(widths[-1], 1, (2, 1), padding=(1, 0)))

    def forward(self, waves: Tensor) -> Scored:
        """Waveforms (batch, samples) to scores (batch, 1, rows, period) and five features."""
        hidden = F.pad(waves.unsqueeze(1), (0, -waves.shape[-1] % self.period), "reflect")
        folded = hidden.unflatten(-1, (-1, self.period))
        return _score(self.layers, self.output, folded, PERIODIC_SLOPE)


def _score(layers: nn.ModuleList, output: nn.Module, hidden: Tensor, slope: float) -> Scored:
    features = []
    for layer in layers:
        hidden = F.leaky_relu(layer(hidden), slope)
        features.append(hidden)
    return output(hidden), features


class ReferenceDiscriminators(Discriminators):
    """The discriminators of the reference trainer: 28.4 M parameters with 32 channels."""

    def build(self, config: AdversarialConfig) -> list[nn.Module]:
        """One discriminator for each FFT size and each period."""
        spectral = [SpectrogramDiscriminator(size, config.channels) for size in config.sizes]
        half = config.channels // 2
        return [*spectral, *(PeriodDiscriminator(period, half) for period in config.periods)]

    @staticmethod
    def loss(real: list[Tensor], generated: list[Tensor]) -> Tensor:
        """Least squares: recordings are to score 1, generated audio 0; the sum."""
        pairs = zip(real, generated, strict=True)
        return torch.stack(
            [(1 - true).square().mean() + false.square().mean() for true, false in pairs]
        ).sum()

    @staticmethod
    def generator_losses(real: list[Scored], generated: list[Scored]) -> tuple[Tensor, Tensor]:
        """Least squares against a score of 1, and the L1 of all features; two sums."""
        adversarial = torch.stack([(1 - score).square().mean() for score, _ in generated]).sum()
        distances = [
            (have.float() - want.float()).abs().mean()
            for (_, wanted), (_, had) in zip(real, generated, strict=True)
            for want, have in zip(wanted, had, strict=True)
        ]
        return adversarial, torch.stack(distances).sum()
