"""A codec as everything else uses it: waveforms to codes and back, clip by clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tts_assets.artifacts import CodecFacts
from tts_assets.codec.features import HOP, SAMPLE_RATE, LogFilterbank
from tts_assets.codec.masking import ClipEnds, obstacle
from tts_assets.codec.storage import facts_of, is_compact, open_compact
from tts_assets.codec.xcodec2 import CompactXcodec2

Wave = NDArray[np.float32]
Codes = NDArray[np.int64]
FAMILIES = ("xcodec2", "neucodec")


class Backend(Protocol):
    """One family of codecs, without gradients. A *hop* is 320 samples of what is encoded."""

    facts: CodecFacts
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

    def decode(self, codes: Tensor) -> Tensor:
        """(1, codes) to (samples,) at the codec's rate."""


class CompactBackend:
    """A codec that this project trained."""

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
        with self.ends[0].at(hops, total), self.ends[1].at(hops, total):
            return self.model.latents(waves)

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.waves(self.model.quantizer.from_codes(codes.unsqueeze(-1)))[0]


class PublishedBackend:
    """``Xcodec2Model`` or ``NeuCodecModel`` of transformers, with its own feature conventions."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.eval()
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
        semantic = model.semantic_encoder(features, attention_mask=mask).last_hidden_state
        with self.semantic_ends.at(frames, total - missing):
            semantic = model.semantic_adapter(semantic.transpose(1, 2))
        with self.acoustic_ends.at(hops, total):
            acoustic = model.acoustic_encoder(waves.unsqueeze(1))
        joined = torch.cat([semantic, acoustic[..., : semantic.shape[-1]]], dim=1).transpose(1, 2)
        projected = model.quantizer.project_in(model.fc_encoder(joined))
        return self.quantizer.bound(projected)  # these codecs bound twice: see xcodec2.py

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(audio_codes=codes.unsqueeze(1)).audio_values[0, 0]


class Codec:
    """Encodes waveforms at :attr:`input_rate`, decodes to waveforms at ``facts.sample_rate``.

    :meth:`encode` and :meth:`decode` take clips one at a time. In a plain batch a clip's codes
    would depend on its mates: convolutions and attention see the padding, and even batches of
    equal lengths round differently. ``batching.py`` encodes batches all the same, exactly.
    """

    input_rate = SAMPLE_RATE

    def __init__(self, backend: Backend, device: str) -> None:
        self.backend, self.device = backend, torch.device(device)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """Open a codec folder, ours or a snapshot of a published one.

        Raises :class:`ValueError` for a model that is no codec of these families.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no codec: it has no config.json")
        family = AutoConfig.from_pretrained(folder).model_type
        if family not in FAMILIES:
            raise ValueError(f"{folder} holds a {family!r} model; codecs are {FAMILIES}")
        if is_compact(folder):
            return cls(CompactBackend(open_compact(folder).moved(device)), device)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device)
        return cls(PublishedBackend(model, device), device)

    @property
    def facts(self) -> CodecFacts:
        return self.backend.facts

    @property
    def obstacle(self) -> str | None:
        """Why clips cannot share a padded batch; None if they can."""
        return self.backend.obstacle

    def codes(self, samples: int) -> int:
        """How many codes a clip of so many samples at :attr:`input_rate` has; 0: too short."""
        return self.backend.codes(samples)

    @property
    def sample_rate(self) -> int:
        """Of decoded waveforms, in Hz."""
        return self.facts.sample_rate

    @property
    def hop_length(self) -> int:
        """Decoded samples of one code."""
        return self.facts.hop_length

    @property
    def token_rate(self) -> float:
        """Codes a second."""
        return self.facts.token_rate

    @property
    def codebook_size(self) -> int:
        return self.facts.codebook_size

    @torch.inference_mode()
    def encode(self, waves: Sequence[Wave]) -> list[Codes]:
        """Mono float32 waveforms at 16 kHz to integer codes, one for every 320 samples begun."""
        return [self.quantize(self.latents([wave]))[0, : self.codes(len(wave))] for wave in waves]

    @torch.inference_mode()
    def latents(self, waves: Sequence[Wave]) -> Tensor:
        """A padded batch of waveforms to what is quantized, (clips, longest, dimensions): of clip
        ``i`` the first ``codes(len(waves[i]))``. A clip's latents are those that it has alone up
        to rounding, if :attr:`obstacle` is None."""
        for wave in waves:
            if wave.ndim != 1 or not len(wave):
                raise ValueError(f"a waveform has shape (samples,), not {wave.shape}")
            if not self.codes(len(wave)):
                raise ValueError(f"a waveform of {len(wave)} samples is too short for a code")
        hops = [self.backend.hops(len(wave)) for wave in waves]
        batch = torch.zeros(len(waves), max(hops) * HOP)
        for row, wave in zip(batch, waves, strict=True):
            row[: len(wave)] = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
        return self.backend.latents(batch.to(self.device), hops)

    @torch.inference_mode()
    def quantize(self, latents: Tensor) -> NDArray[np.int64]:
        """(clips, codes, dimensions) to codes (clips, codes)."""
        _, codes = self.backend.quantizer(latents)
        return codes.cpu().numpy().astype(np.int64)

    @torch.inference_mode()
    def levels(self, latents: Tensor) -> Tensor:
        """The same in units of quantization levels: the code is decided by rounding."""
        return self.backend.quantizer.bound(latents.float())

    @torch.inference_mode()
    def decode(self, codes: Sequence[NDArray[np.integer[Any]]]) -> list[Wave]:
        """Codes, each (codes,), to mono float32 waveforms of ``codes * hop_length`` samples."""
        waves = []
        for clip in codes:
            if clip.ndim != 1 or not len(clip):
                raise ValueError(f"codes have shape (codes,), not {clip.shape}")
            if clip.min() < 0 or clip.max() >= self.codebook_size:
                raise ValueError(
                    f"codes lie in [0, {self.codebook_size}), but these in [{clip.min()}, "
                    f"{clip.max()}]: they are of another codec, or were not mapped from tokens"
                )
            tensor = torch.from_numpy(clip.astype(np.int64)).to(self.device)
            waves.append(self.backend.decode(tensor.unsqueeze(0)).cpu().numpy())
        return waves


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
