"""A separate decoder for a codec's codes, at another sample rate than the codec's.

The backbone is X-Codec-2's. Before the inverse STFT an upsampler may multiply the number of frames:
16 kHz has a hop of 320 samples, 24 kHz of 480, 48 kHz of 160 after upsampling by 3 and 2. The
folder has ``model.safetensors``, ``config.json`` (sizes) and ``model_config.json`` with the keys of
the reference trainer.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import Xcodec2Config
from transformers.models.xcodec2.modeling_xcodec2 import Xcodec2Decoder, Xcodec2ISTFTHead

from tts_assets.codec.config import DecoderSize
from tts_assets.codec.storage import CONFIG_FILE, read_weights, save_weights
from tts_assets.codec.xcodec2 import backbone_sizes
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import Config

OUTPUT_FILE = "model_config.json"


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


def decoder_config(codec: Any, size: DecoderSize | None = None) -> Xcodec2Config:
    """The configuration of a decoder of a codec's codes.

    ``codec`` is the configuration of the codec's model; ``size`` replaces its decoder's size.
    """
    values = {
        name: getattr(codec, name)
        for name in (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters"),
        )
    }
    if size is not None:
        values |= backbone_sizes(size)
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
def copy_fitting_weights(source: nn.Module, target: CodecDecoder) -> list[str]:
    """Copy all weights of ``source`` whose name and shape exist in ``target``.

    Returns the names of the other weights of ``target``: a head of another rate, an upsampler.
    """
    own, theirs = target.state_dict(), source.state_dict()
    fitting = {n: t for n, t in theirs.items() if n in own and own[n].shape == t.shape}
    target.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())
