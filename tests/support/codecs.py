"""Small random models of the codecs with several codebooks, of the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from snac import SNAC
from torch import nn
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
)

from tts_assets.codec.original import fetch


@torch.no_grad()
def random_codec(kind: str, size: int) -> Any:
    """A small model with biases other than zero and entries as far apart as the latents are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SNAC(**SNAC_SIZES | {"codebook_size": size}) if kind == "snac" else MODELS[kind]()
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        for name, own in model.named_buffers():
            if name.endswith(("codebook.embed", "codebook.embed_sum")):
                nn.init.normal_(own, std=0.3)
    return model.eval()


def random_dac() -> DacModel:
    return DacModel(
        DacConfig(
            encoder_hidden_size=4,
            decoder_hidden_size=32,
            downsampling_ratios=[2, 4, 5, 8],
            n_codebooks=3,
            codebook_size=64,
            codebook_dim=4,
        )
    )


def random_encodec() -> EncodecModel:
    return EncodecModel(
        EncodecConfig(
            num_filters=4,
            hidden_size=16,
            codebook_dim=16,
            codebook_size=64,
            target_bandwidths=[0.45, 1.8],
        )
    )


def random_mimi() -> MimiModel:
    return MimiModel(
        MimiConfig(
            num_filters=4,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=32,
            codebook_size=64,
            codebook_dim=16,
            vector_quantization_hidden_dimension=16,
            num_quantizers=4,
            upsample_groups=32,
            sliding_window=20,
            layer_scale_initial_scale=0.5,
        )
    )


SNAC_SIZES = {
    "sampling_rate": 24_000,
    "encoder_dim": 4,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 32,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 64,
    "codebook_dim": 4,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}


MODELS: dict[str, Any] = {
    "dac": random_dac,
    "encodec": random_encodec,
    "mimi": random_mimi,
    "snac": SNAC,
}


def saved(kind: str, folder: Path, codebooks: int | None = None, size: int = 64) -> Path:
    """A codec folder as ``codec`` publishes it. ``size``: of each codebook of a SNAC."""
    model, source = random_codec(kind, size), folder / "source"
    source.mkdir(parents=True)
    if kind == "snac":  # as published: a pickle and a config without a model type
        values = SNAC_SIZES | {"codebook_size": size}
        (source / "config.json").write_text(json.dumps(values))
        torch.save(model.state_dict(), source / "pytorch_model.bin")
    else:
        model.save_pretrained(source)
    (folder / "codec").mkdir()
    fetch("source", {}, folder, folder / "codec", codebooks)
    return folder / "codec"
