"""A separate decoder for a codec's codes, at another sample rate than the codec's.

The backbone is X-Codec-2's. Before the inverse STFT an upsampler may multiply the number of frames:
16 kHz has a hop of 320 samples, 24 kHz of 480, 48 kHz of 160 after upsampling by 3 and 2. The
folder has ``model.safetensors``, ``config.json`` (sizes) and ``model_config.json`` with the keys of
the reference trainer.

The losses of its training equal by number those of the reference trainer, inworld-ai/tts at commit
6a3d36c (``tts/core/codec/decoder.py``, ``criterion.py`` and ``discriminator.py``): the sum of seven
mel distances with weight 15, the squared difference of levels in dB, least squares (Mao et al.,
LSGAN, 2017) and feature matching as sums over all discriminators. The only difference is what
happens with silence (see :func:`level_loss`). All losses take float32 waveforms (batch, samples) in
[-1, 1] and return scalars.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import Xcodec2Config
from transformers.audio_utils import mel_filter_bank
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Decoder, Xcodec2ISTFTHead

from tts_assets.codec.backends import CONFIG_FILE, read_weights, save_weights
from tts_assets.codec.losses import Discriminators, Scored, stft_power
from tts_assets.codec.training_config import DiscriminatorSizes
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import Config

OUTPUT_FILE = "model_config.json"
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


class DecoderOutput(Config):
    """``model_config.json``: how frames become samples. ``hop_length``: of the inverse STFT."""

    model_type: str = "codec_decoder"
    sample_rate: int
    token_rate: int
    hop_length: int
    upsample_factors: tuple[int, ...] = ()
    kernel_sizes: tuple[int, ...] = Field((), description="of the transposed convolutions")

    @property
    def code_samples(self) -> int:
        """Decoded samples per code."""
        return self.hop_length * math.prod(self.upsample_factors)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.code_samples * self.token_rate != self.sample_rate:
            raise ValueError(
                f"{self.token_rate} codes per second of {self.code_samples} samples (hop_length x "
                f"upsample_factors) are not {self.sample_rate} Hz"
            )
        pairs = zip(self.kernel_sizes, self.upsample_factors, strict=False)
        if len(self.kernel_sizes) != len(self.upsample_factors) or any(
            size < factor or (size - factor) % 2 for size, factor in pairs
        ):
            raise ValueError(
                f"kernel_sizes {self.kernel_sizes} must be one for each of upsample_factors "
                f"{self.upsample_factors}, larger by an even number"
            )
        return self


OUTPUTS = {
    16_000: DecoderOutput(sample_rate=16_000, token_rate=50, hop_length=320),
    24_000: DecoderOutput(sample_rate=24_000, token_rate=50, hop_length=480),
    48_000: DecoderOutput(
        sample_rate=48_000,
        token_rate=50,
        hop_length=160,
        upsample_factors=(3, 2),
        kernel_sizes=(9, 6),
    ),
}


class ResidualBlock(nn.Module):
    """Two normalized convolutions with a residual connection; (batch, channels, frames)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = math.gcd(32, channels)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels, eps=1e-6) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, channels, frames) to the same shape."""
        residual = hidden
        for norm, conv in zip(self.norms, self.convs, strict=True):
            residual = conv(F.silu(norm(residual)))
        return hidden + residual


class UpsampledHead(nn.Module):
    """Upsamples frames by transposed convolutions, each with half as many channels, then inverts
    the STFT."""

    def __init__(self, hidden: int, output: DecoderOutput) -> None:
        super().__init__()
        widths = [hidden // 2**step for step in range(len(output.upsample_factors) + 1)]
        self.ups = nn.ModuleList(
            weight_norm(
                nn.ConvTranspose1d(
                    widths[step], widths[step + 1], size, factor, padding=(size - factor) // 2
                )
            )
            for step, (size, factor) in enumerate(
                zip(output.kernel_sizes, output.upsample_factors, strict=True)
            )
        )
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths[1:])
        self.out_proj = nn.Linear(widths[-1], hidden)
        self.istft = istft_head(hidden, output.hop_length)

    def forward(self, hidden: Tensor) -> Tensor:
        """Frames (batch, frames, hidden) to waveforms (batch, 1, samples)."""
        frames = hidden.transpose(1, 2)
        for up, block in zip(self.ups, self.blocks, strict=True):
            frames = block(up(frames))
        return self.istft(F.silu(self.out_proj(frames.transpose(1, 2))))


def istft_head(hidden: int, hop: int) -> Xcodec2ISTFTHead:
    """The head that predicts magnitudes and phases of an STFT with FFT size 4 x ``hop``."""
    sizes: Any = SimpleNamespace(hidden_size=hidden, hop_length=hop, n_fft=4 * hop)
    return Xcodec2ISTFTHead(sizes)


class CodecDecoder(Xcodec2Decoder):
    """Decodes dequantized frames (batch, codes, dimension of the quantizer) to waveforms."""

    head: Any

    def __init__(self, config: Xcodec2Config, output: DecoderOutput) -> None:
        super().__init__(config)
        self.config, self.output = config, output
        self.fc = nn.Linear(config.quantization_dim, config.hidden_size)
        self.head = (
            UpsampledHead(config.hidden_size, output)
            if output.upsample_factors
            else istft_head(config.hidden_size, output.hop_length)
        )

    @property
    def parameter_count(self) -> int:
        """The number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def waves(self, frames: Tensor) -> Tensor:
        """Frames (batch, codes, dimension of the quantizer) to waveforms (batch, samples)."""
        return self(frames).squeeze(1)


def decoder_config(codec: Any) -> Xcodec2Config:
    """The configuration of a decoder of a codec's codes; ``codec``: that of the codec's model."""
    values = {
        name: getattr(codec, name)
        for name in (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters"),
        )
    }
    return Xcodec2Config(
        **values,
        semantic_model_config=codec.semantic_model_config.to_dict(),
        quantization_dim=codec.quantization_dim,
        quantization_levels=list(codec.quantization_levels),
        activation_dropout=0.0,
    )


def save_decoder(
    model: CodecDecoder, folder: Path, dtype: Literal["fp32", "fp16"] = "fp32"
) -> None:
    """Write the folder; ``fp16`` halves the file and is read back as float32."""
    save_weights(model, folder, dtype)
    with atomic_write(folder / CONFIG_FILE) as aside:
        aside.write_text(model.config.to_json_string(use_diff=False))
    with atomic_write(folder / OUTPUT_FILE) as aside:
        aside.write_text(json.dumps(model.output.model_dump(mode="json"), indent=4) + "\n")


def open_decoder(folder: Path) -> CodecDecoder:
    """Read a folder that :func:`save_decoder` wrote; float32, on the CPU, in training mode.

    Raises ValueError if it holds no decoder.
    """
    if not (folder / OUTPUT_FILE).is_file():
        raise ValueError(f"{folder} holds no decoder: it has no {OUTPUT_FILE}")
    output = DecoderOutput.from_json(folder / OUTPUT_FILE)
    model = CodecDecoder(Xcodec2Config.from_pretrained(folder), output)
    read_weights(model, folder)
    return model.train()


@torch.no_grad()
def copy_fitting_weights(source: nn.Module, target: nn.Module) -> list[str]:
    """Copy all weights of ``source`` whose name and shape exist in ``target``.

    Returns the names of the other weights of ``target``: a head of another rate, an upsampler.
    """
    own, theirs = target.state_dict(), source.state_dict()
    fitting = {n: t for n, t in theirs.items() if n in own and own[n].shape == t.shape}
    target.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())


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

    def build(self, sizes: DiscriminatorSizes) -> list[nn.Module]:
        """One discriminator for each FFT size and each period."""
        spectral = [SpectrogramDiscriminator(size, sizes.channels) for size in sizes.sizes]
        half = sizes.channels // 2
        return [*spectral, *(PeriodDiscriminator(period, half) for period in sizes.periods)]

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
