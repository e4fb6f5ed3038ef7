"""LoRA (Hu et al. 2022, arXiv 2106.09685): low-rank adapters beside frozen matrices, by peft."""

from __future__ import annotations

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn
from transformers import PreTrainedModel

from tts_assets.config import ConfigError
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.model import layers_of
from tts_assets.sft.strategies.base import Tensors
from tts_assets.sft.tables import Lora
from tts_assets.speechlm.model import SpeechLM, input_table, output_table
from tts_assets.speechlm.tokenizer import load_tokenizer
from tts_assets.speechlm.vocabulary import SPEECH_START


def check(recipe: SftRecipe) -> None:
    """Raise :class:`ConfigError` where rows of new tokens would stay as they were drawn."""
    if recipe.lora is None or recipe.lora.embeddings or recipe.base.hub is None:
        return
    if SPEECH_START not in load_tokenizer(recipe.base.hub).get_vocab():
        raise ConfigError(
            f"{recipe.base.hub} has no speech vocabulary: its rows would be new, and lora alone "
            "leaves them random. Write lora.embeddings = true, or begin with a base that speaks"
        )


def adapt(model: PreTrainedModel, config: Lora, seed: int) -> LoraModel:
    """Freeze ``model`` and put adapters, drawn from ``seed``, beside matrices of its layers.

    The names of its layers stay; that of an adapted one's weight gains ``.base_layer``.
    """
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets(model, config),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuner = LoraModel(model, settings, "default")
    if config.embeddings:
        for table in (input_table(model), output_table(model)):
            table.requires_grad_(True)
    return tuner


def targets(model: PreTrainedModel, config: Lora) -> list[str]:
    """Full names of the layers' matrices that get adapters."""
    inside = {id(module) for layer in layers_of(model) for module in layer.modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear)
    ]
    known = sorted({_last(name) for name in linear})
    unknown = sorted(set(config.targets) - set(known))
    if unknown:
        raise ConfigError(f"lora.targets {unknown} are no matrices of the layers; known: {known}")
    return [name for name in linear if _last(name) in (config.targets or known)]


def merged(base: SpeechLM, recipe: SftRecipe, trained: Tensors) -> SpeechLM:
    """``base``, as it was before training, made the plain model with all that was trained."""
    assert recipe.lora is not None
    tuner = adapt(base.model, recipe.lora, recipe.seed)
    found = base.model.load_state_dict(trained, strict=False)
    if found.unexpected_keys:
        raise ValueError(f"{found.unexpected_keys} are no parameters of the adapted model")
    tuner.merge_and_unload()
    return base


def _last(name: str) -> str:
    return name.rpartition(".")[2]
