"""Features of a frozen encoder: targets of codec training, and the input of content codecs.

Codes that predict these features hold more of what is said: a small language model learns to read
from them sooner, as from the codes of X-Codec-2 (Ye et al., 2025) and SpeechTokenizer (Zhang et
al., 2024), which are trained with the features of w2v-BERT and HuBERT. Whisper's encoder has a
feature every 20 ms, which is one per code here, and its weights are installed with this project.

The codes of a :class:`ContentCodec` follow from Whisper's features alone, as in CosyVoice (Du et
al., 2024): they hold what is said and how, and its decoder holds the voice (Polyak et al., 2021).
A language model that reads in one voice then reads in any voice that a decoder is trained for.
"""

from __future__ import annotations

import math
import struct
from abc import abstractmethod
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tts_assets.codec.config import CodecArchitecture
from tts_assets.codec.losses import stft_power
from tts_assets.codec.xcodec2 import (
    HOP,
    CompactConfig,
    CompactXcodec2,
    centre_latents,
    compact_config,
    initialize_published,
)

FFT, SHIFT = 400, 160  # samples at 16 kHz
MEL_FLOOR = 1e-10
SMALLEST_SPREAD = 0.05  # standard deviation of a feature that hardly changes
KERNEL = 7  # codes that the prediction of a feature sees
WHISPER_SIZES = (
    "d_model",
    "num_mel_bins",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "max_source_positions",
)  # of a WhisperConfig: what its encoder depends on
CT2_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


class SemanticFeatures(nn.Module):
    """Standardized features of a frozen encoder.

    Mean and deviation are those of the training audio (:meth:`calibrate`), because a few features
    are much larger than the others. A subclass defines ``size`` and :meth:`raw`.
    """

    mean: Tensor
    deviation: Tensor
    size: int

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    @abstractmethod
    def raw(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples), a multiple of 320, to features (batch, codes, size)."""

    @torch.no_grad()
    def calibrate(self, waves: Tensor) -> None:
        """Set mean and deviation from training audio (batch, samples)."""
        raw = self.raw(waves).flatten(0, 1)
        self.mean.copy_(raw.mean(dim=0))
        self.deviation.copy_(raw.std(dim=0).clamp_min(SMALLEST_SPREAD))

    def forward(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples) at 16 kHz to standardized features (batch, codes, size)."""
        return (self.raw(waves) - self.mean) / self.deviation


class WhisperFeatures(SemanticFeatures):
    """The features of a frozen Whisper encoder; gradients reach the waveform, not the weights."""

    mel: Tensor
    window: Tensor

    def __init__(self, encoder: WhisperEncoder) -> None:
        super().__init__(encoder.config.d_model)
        self.encoder = encoder.eval().requires_grad_(False)
        filters = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins).mel_filters
        mel = torch.tensor(np.asarray(filters), dtype=torch.float32)
        self.register_buffer("mel", mel.T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open the encoder of a CTranslate2 Whisper in float16 or float32.

        Raises ValueError for other files, and for quantized weights.
        """
        return cls(read_encoder(folder))

    def raw(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples), a multiple of 320, to Whisper's features.

        Whisper pads clips to 30 s; here the encoder sees the window alone.
        """
        bands = self.log_mel(waves)
        model = self.encoder
        hidden = F.gelu(model.conv2(F.gelu(model.conv1(bands)))).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        for layer in model.layers:
            made = layer(hidden, None)
            hidden = made[0] if isinstance(made, tuple) else made
        features: Tensor = model.layer_norm(hidden)
        return features

    def log_mel(self, waves: Tensor) -> Tensor:
        """(batch, samples) to Whisper's input (batch, bands, samples / 160)."""
        power = stft_power(waves, FFT, SHIFT, self.window)[..., :-1]
        bands = (self.mel @ power).clamp_min(MEL_FLOOR).log10()
        loudest = bands.detach().amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(bands, loudest - 8.0) + 4.0) / 4.0


class SemanticHead(nn.Module):
    """Predicts the semantic features from the quantized frames of the codec."""

    def __init__(self, hidden: int, size: int) -> None:
        """``hidden``: channels of a quantized frame; ``size``: number of features."""
        super().__init__()
        self.first = nn.Conv1d(hidden, 2 * hidden, KERNEL, padding=KERNEL // 2)
        self.last = nn.Conv1d(2 * hidden, size, 1)

    def forward(self, quantized: Tensor) -> Tensor:
        """(batch, codes, hidden) to (batch, codes, size)."""
        made: Tensor = self.last(F.gelu(self.first(quantized.transpose(1, 2))))
        return made.transpose(1, 2)


class ContentConfig(CompactConfig):
    """Sizes of a :class:`ContentCodec`; ``whisper`` are those of its encoder."""

    model_type = "content_xcodec2"


class ContentCodec(CompactXcodec2):
    """A compact codec with a frozen Whisper encoder in place of the filterbank."""

    config_class = ContentConfig
    semantic_encoder: WhisperFeatures

    def __init__(self, config: ContentConfig) -> None:
        super().__init__(config)
        sizes = WhisperConfig(**{name: config.whisper[name] for name in WHISPER_SIZES})
        self.semantic_encoder = WhisperFeatures(WhisperEncoder(sizes))

    @classmethod
    def build(cls, size: CodecArchitecture, whisper: Path, seed: int) -> Self:
        """A codec around the encoder of a CTranslate2 Whisper; its other weights are random."""
        encoder = read_encoder(whisper)
        sizes = {name: getattr(encoder.config, name) for name in WHISPER_SIZES}
        size = size.model_copy(update={"semantic_hidden": encoder.config.d_model})
        values = compact_config(size).to_dict() | {"whisper": sizes, "features": "whisper"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(ContentConfig.from_dict(values))
            initialize_published(model, waveform_branch=size.acoustic_hidden > 0)
        model.semantic_encoder.encoder.load_state_dict(encoder.state_dict())
        return model

    @torch.no_grad()
    def features(self, waves: Tensor) -> Tensor:
        """See :meth:`CompactXcodec2.features`; clips over 30 s are encoded in equal parts."""
        codes = waves.shape[-1] // HOP
        longest = self.semantic_encoder.encoder.config.max_source_positions
        part = HOP * math.ceil(codes / math.ceil(codes / longest))
        return torch.cat([self.semantic_encoder(one) for one in waves.split(part, dim=1)], dim=1)

    @torch.no_grad()
    def calibrate(self, waves: Tensor) -> None:
        """Standardize features and latents by training audio (batch, samples)."""
        self.semantic_encoder.calibrate(waves)
        centre_latents(self.quantizer.project_in, self.latents(waves))


AutoConfig.register(ContentConfig.model_type, ContentConfig)
AutoModel.register(ContentConfig, ContentCodec)


def read_encoder(folder: Path) -> WhisperEncoder:
    """The encoder of a CTranslate2 Whisper as the class of transformers, in float32.

    Raises ValueError for other files, and for quantized weights, which are not the model's own.
    """
    weights = _ct2_variables(folder / "model.bin")
    layers = sum(name.endswith("self_attention/linear_1/weight") for name in weights)
    width, bands, _ = weights["encoder/conv1/weight"].shape
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=bands,
        encoder_layers=layers,
        encoder_attention_heads=int(weights["encoder/num_heads"]),
        encoder_ffn_dim=len(weights["encoder/layer_0/ffn/linear_0/bias"]),
        max_source_positions=len(weights["encoder/position_encodings/encodings"]),
    )
    encoder = WhisperEncoder(config)
    encoder.load_state_dict(_transformers_names(weights, layers))
    return encoder


def _transformers_names(weights: dict[str, NDArray], layers: int) -> dict[str, Tensor]:
    """The encoder's tensors under their names in transformers."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(weights[f"encoder/{name}"].astype(np.float32))

    def norm(ours: str, theirs: str) -> dict[str, Tensor]:
        return {
            f"{ours}.weight": tensor(f"{theirs}/gamma"),
            f"{ours}.bias": tensor(f"{theirs}/beta"),
        }

    def linear(ours: str, theirs: str) -> dict[str, Tensor]:
        return {f"{ours}.{kind}": tensor(f"{theirs}/{kind}") for kind in ("weight", "bias")}

    found = {"embed_positions.weight": tensor("position_encodings/encodings")}
    found |= linear("conv1", "conv1") | linear("conv2", "conv2") | norm("layer_norm", "layer_norm")
    for number in range(layers):
        ours, theirs = f"layers.{number}", f"layer_{number}"
        found |= norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
        found |= norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
        found |= linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
        found |= linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
        found |= linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
        joined = f"{theirs}/self_attention/linear_0"
        parts = zip(
            ("q", "k", "v"),
            tensor(f"{joined}/weight").chunk(3),
            tensor(f"{joined}/bias").chunk(3),
            strict=True,
        )
        for name, weight, bias in parts:
            found[f"{ours}.self_attn.{name}_proj.weight"] = weight
            if name != "k":  # Whisper's keys have no bias
                found[f"{ours}.self_attn.{name}_proj.bias"] = bias
    return found


def _ct2_variables(path: Path) -> dict[str, NDArray]:
    """The variables of a CTranslate2 ``model.bin`` (binary version 6) by name."""
    with path.open("rb") as file:
        (version,) = _unpack(file, "I")
        spec = _text(file)
        if version != 6 or spec != "WhisperSpec":
            raise ValueError(f"{path} is no Whisper of CTranslate2 (version {version}, {spec!r})")
        _, count = _unpack(file, "II")
        found: dict[str, NDArray] = {}
        for _ in range(count):
            name = _text(file)
            (rank,) = _unpack(file, "B")
            shape = _unpack(file, f"{rank}I")
            kind, size = _unpack(file, "BI")
            data = np.frombuffer(file.read(size), CT2_TYPES[kind]).reshape(shape)
            if name.startswith("encoder/"):
                if name.endswith("weight") and data.dtype == np.int8:
                    raise ValueError(f"{path} has quantized weights: name a float16 model")
                found[name] = data
    return found


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: BinaryIO) -> str:
    (size,) = _unpack(file, "H")
    return file.read(size)[:-1].decode()
