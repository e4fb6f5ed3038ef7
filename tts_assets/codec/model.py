"""A codec as everything else uses it: waveforms to codes and back, clip by clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tts_assets.artifacts import CodecFacts
from tts_assets.codec.features import HOP, SAMPLE_RATE, LogFilterbank
from tts_assets.codec.storage import facts_of, is_compact, open_compact
from tts_assets.codec.xcodec2 import CompactXcodec2

Wave = NDArray[np.float32]
Codes = NDArray[np.int64]
FAMILIES = ("xcodec2", "neucodec")


class Backend(Protocol):
    """One clip in, one clip out, without gradients."""

    facts: CodecFacts

    def encode(self, wave: Tensor) -> Tensor:
        """(1, samples) at 16 kHz to codes (codes,)."""

    def decode(self, codes: Tensor) -> Tensor:
        """(1, codes) to (samples,) at the codec's rate."""


class CompactBackend:
    """A codec that this project trained."""

    def __init__(self, model: CompactXcodec2) -> None:
        self.model = model.eval()
        self.facts = facts_of(model)

    def encode(self, wave: Tensor) -> Tensor:
        wave = F.pad(wave, (0, -wave.shape[-1] % HOP))
        _, codes = self.model.quantizer.quantize(self.model.latents(wave))
        return codes.flatten()

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.waves(self.model.quantizer.from_codes(codes.unsqueeze(-1)))[0]


class PublishedBackend:
    """``Xcodec2Model`` or ``NeuCodecModel`` of transformers, with its own feature conventions."""

    def __init__(self, model: Any, device: str) -> None:
        self.model = model.eval()
        family = model.config.model_type
        self.filterbank = LogFilterbank(per_clip=True, centred=family == "xcodec2").to(device)
        self.facts = _published_facts(model)

    def encode(self, wave: Tensor) -> Tensor:
        samples = wave.shape[-1]
        # Their extractors add one sample before they pad to whole codes; the frame that this may
        # add is dropped again.
        wave = F.pad(wave, (0, 1 + -(samples + 1) % HOP))
        output = self.model.encode(wave.unsqueeze(1), self.filterbank(wave))
        return output.audio_codes.flatten()[: math.ceil(samples / HOP)]

    def decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(audio_codes=codes.unsqueeze(1)).audio_values[0, 0]


class Codec:
    """Encodes waveforms at :attr:`input_rate`, decodes to waveforms at ``facts.sample_rate``.

    Clips go through the model one at a time. In a batch a clip's codes would depend on its mates:
    the convolutions and the attention see the padding, the group norms average over it, and even
    batches of equal lengths round differently. Ranks work in parallel instead.
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
        codes = []
        for wave in waves:
            if wave.ndim != 1 or not len(wave):
                raise ValueError(f"a waveform has shape (samples,), not {wave.shape}")
            clip = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
            encoded = self.backend.encode(clip.unsqueeze(0).to(self.device))
            codes.append(encoded.cpu().numpy().astype(np.int64))
        return codes

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
