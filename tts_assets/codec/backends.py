"""The families of codecs behind one interface: ours, and those of ``transformers``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from tts_assets.artifacts import CodecFacts
from tts_assets.codec.features import HOP, LogFilterbank
from tts_assets.codec.masking import ClipEnds, obstacle
from tts_assets.codec.storage import facts_of
from tts_assets.codec.xcodec2 import CompactXcodec2

Precision = Literal["fp32", "bf16"]


class Backend(Protocol):
    """One family of codecs, without gradients. A *hop* is 320 samples of what is encoded."""

    facts: CodecFacts
    model: Any
    quantizer: Any
    obstacle: str | None
    """Why clips cannot share a padded batch, if they cannot."""

    def hops(self, samples: int) -> int:
        """The length that a clip is padded to before it is encoded."""

    def codes(self, samples: int) -> int:
        """The codes of a clip; 0 if it is too short."""

    def latents(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        """Clips (clips, longest) of ``hops`` each, zeros behind, to what is quantized: (clips,
        codes, dimensions of the code). What follows a clip's codes is of no clip."""

    def dequantized(self, codes: Tensor) -> Tensor:
        """(clips, codes) to the frames that a decoder gets, (clips, codes, hidden)."""

    def waves(self, frames: Tensor) -> Tensor:
        """Frames to (clips, samples) at the codec's rate."""


class CompactBackend:
    """A codec that this project trained. It is encoded in float32: its semantic encoder has no
    layers that would be faster in bf16, which changed one code in a hundred."""

    def __init__(self, model: CompactXcodec2) -> None:
        self.model = model.eval()
        self.quantizer = model.quantizer.quantizer
        self.facts = facts_of(model)
        self.obstacle = obstacle(model)
        self.ends = [ClipEnds(part) for part in (model.semantic_adapter, model.acoustic_encoder)]

    def hops(self, samples: int) -> int:
        return math.ceil(samples / HOP)

    codes = hops

    def latents(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        total = waves.shape[-1] // HOP
        features = self.model.filterbank(waves)
        semantic = self.model.semantic_encoder(features).last_hidden_state
        with self.ends[0].at(hops, total), self.ends[1].at(hops, total):
            return self.model.joined(semantic, waves)

    def dequantized(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.from_codes(codes.unsqueeze(-1))

    def waves(self, frames: Tensor) -> Tensor:
        return self.model.waves(frames)


class PublishedBackend:
    """``Xcodec2Model`` or ``NeuCodecModel`` of transformers, with its own feature conventions."""

    def __init__(self, model: Any, device: str, precision: Precision = "fp32") -> None:
        self.model, self.precision = model.eval(), precision
        self.quantizer = model.quantizer.quantizer
        self.facts = _published_facts(model)
        self.obstacle = obstacle(model)
        self.centred = model.config.model_type == "xcodec2"
        self.filterbank = LogFilterbank(per_clip=True, centred=self.centred).to(device)
        self.semantic_ends = ClipEnds(model.semantic_adapter)
        self.acoustic_ends = ClipEnds(model.acoustic_encoder)

    def hops(self, samples: int) -> int:
        return samples // HOP + 1  # their extractors add one sample before they pad to whole hops

    def codes(self, samples: int) -> int:
        return math.ceil(samples / HOP) if self.centred else samples // HOP

    def latents(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        model, total = self.model, waves.shape[-1] // HOP
        missing = 0 if self.centred else 1  # frames: see LogFilterbank
        frames = [count - missing for count in hops]
        features = self.filterbank(waves, frames)
        mask = None
        if min(hops) < total:
            counts = torch.tensor(frames, device=waves.device).unsqueeze(1)
            mask = torch.arange(features.shape[1], device=waves.device) < counts
        # All that follows stays in float32: in bf16 it alone changes one code in a hundred.
        with torch.autocast(waves.device.type, torch.bfloat16, self.precision == "bf16"):
            semantic = model.semantic_encoder(features, attention_mask=mask).last_hidden_state
        semantic = semantic.to(waves.dtype)
        with self.semantic_ends.at(frames, total - missing):
            semantic = model.semantic_adapter(semantic.transpose(1, 2))
        with self.acoustic_ends.at(hops, total):
            acoustic = model.acoustic_encoder(waves.unsqueeze(1))
        joined = torch.cat([semantic, acoustic[..., : semantic.shape[-1]]], dim=1).transpose(1, 2)
        projected = model.quantizer.project_in(model.fc_encoder(joined))
        return self.quantizer.bound(projected)  # these codecs bound twice: see xcodec2.py

    def dequantized(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.from_codes(codes.unsqueeze(-1))

    def waves(self, frames: Tensor) -> Tensor:
        return self.model.decode(latents=frames.transpose(1, 2)).audio_values[:, 0]


def _published_facts(model: Any) -> CodecFacts:
    config = model.config
    rate = getattr(config, "output_sampling_rate", None) or config.sampling_rate
    return CodecFacts(
        sample_rate=rate,
        hop_length=config.hop_length,
        token_rate=rate / config.hop_length,
        codebook_size=math.prod(config.quantization_levels),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
