"""X-Codec-2 with its published function, trainable (Ye et al., 2025).

:class:`PublishedCodec` computes in training what the class of ``transformers`` computes in
inference: w2v-BERT 2.0 as a frozen semantic encoder, the waveform branch, the quantizer with its
two bounds. Its semantic features are the target of the loss that the paper calls semantic
reconstruction (``semantic.features = "codec"``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel, Xcodec2Config, Xcodec2Model

from tts_assets.codec.config import CodecArchitecture
from tts_assets.codec.storage import open_complete
from tts_assets.codec.xcodec2 import (
    HOP,
    LogFilterbank,
    backbone_sizes,
    encoder_parts,
    initialize_published,
)

SEMANTIC_LAYERS = 16  # of the 24 of w2v-BERT 2.0: X-Codec-2 uses hidden state 16


class PublishedCodec(nn.Module):
    """``Xcodec2Model`` as the trainer of codecs needs it. The semantic encoder stays frozen."""

    def __init__(self, model: Xcodec2Model) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config
        self.filterbank = LogFilterbank(per_clip=True)
        model.semantic_encoder.requires_grad_(False)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a folder of transformers in float32. Raises ValueError if weights are missing."""
        return cls(open_complete(Xcodec2Model, folder)).train()

    @classmethod
    def build(cls, size: CodecArchitecture, seed: int) -> Self:
        """Random weights that follow from ``seed``, around a pretrained semantic encoder.

        Raises ValueError if the folder of the semantic encoder lacks weights of its first layers.
        """
        assert size.semantic_model is not None
        folder = size.semantic_model
        semantic = open_complete(Wav2Vec2BertModel, folder, config=_semantic_config(folder))
        config = Xcodec2Config(
            **backbone_sizes(size),
            encoder_hidden_size=size.acoustic_hidden,
            downsampling_ratios=list(size.ratios),
            semantic_model_config=semantic.config,
            quantization_dim=size.hidden + semantic.config.hidden_size,
            quantization_levels=list(size.levels),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Xcodec2Model(config)
            initialize_published(model)
        model.semantic_encoder.load_state_dict(semantic.state_dict())
        return cls(model).train()

    def train(self, mode: bool = True) -> Self:
        """As of a module; the semantic encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        self.model.semantic_encoder.eval()
        return self

    def semantic_features(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples), a multiple of 320, to features (batch, codes, size).

        The extractor of the published codec adds a sample and pads to whole hops, so there is one
        more feature than codes; it is left out here, and read by :meth:`latents`.
        """
        return self._features(waves)[:, :-1]

    @torch.no_grad()
    def _features(self, waves: Tensor) -> Tensor:
        bands = self.filterbank(F.pad(waves, (0, HOP)))
        features: Tensor = self.model.semantic_encoder(bands).last_hidden_state
        return features

    def latents(self, waves: Tensor) -> Tensor:
        """Waveforms (batch, samples), a multiple of 320, to latents (batch, codes, dimensions).

        They are the projections before either bound.
        """
        semantic = self.model.semantic_adapter(self._features(waves).transpose(1, 2))
        # On CPUs with AMX some strided convolutions are wrong in bfloat16; see xcodec2.py.
        with torch.autocast("cpu", enabled=False):
            acoustic = self.model.acoustic_encoder(F.pad(waves, (0, HOP)).unsqueeze(1))
        frames = torch.cat([semantic, acoustic], dim=1).transpose(1, 2)
        projected: Tensor = self.model.quantizer.project_in(self.model.fc_encoder(frames))
        return projected[:, :-1]

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents to quantized frames (batch, codes, hidden) and codes (batch, codes, 1)."""
        quantizer = self.model.quantizer
        quantized, codes = quantizer.quantizer(quantizer.quantizer.bound(latents.float()))
        return quantizer.project_out(quantized.to(latents.dtype)), codes.unsqueeze(-1)

    def waves(self, quantized: Tensor) -> Tensor:
        """Quantized frames (batch, codes, hidden) to waveforms (batch, samples)."""
        made: Tensor = self.model.acoustic_decoder(quantized).squeeze(1)
        return made

    def encoder_parts(self) -> list[nn.Module]:
        """All modules that determine the codes of a clip."""
        return encoder_parts(self.model)

    def published(self) -> Xcodec2Model:
        """The model whose config and weights make a codec folder."""
        return self.model


def _semantic_config(folder: Path) -> Wav2Vec2BertConfig:
    """The first layers of a w2v-BERT; a smaller one is used whole."""
    config = Wav2Vec2BertConfig.from_pretrained(folder)
    config.num_hidden_layers = min(config.num_hidden_layers, SEMANTIC_LAYERS)
    config.layerdrop = 0.0
    config.apply_spec_augment = False
    return config
