"""An encoder on disk: ``model.safetensors`` and ``config.json`` with what it hears.

The public weights of Resemblyzer and Real-Time-Voice-Cloning are one ``.pt`` without settings;
those are known (``PUBLIC_AUDIO``).
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn

from tts_assets.artifacts import written_aside
from tts_assets.config import Config, ConfigError
from tts_assets.speakers.config import (
    PUBLIC_ARCHITECTURE,
    PUBLIC_AUDIO,
    AudioSettings,
    EncoderArchitecture,
)
from tts_assets.speakers.loss import OFFSET, SCALE
from tts_assets.speakers.model import build
from tts_assets.speakers.source import CONFIG_FILE, WEIGHTS_FILE, check_exists


class EncoderCard(Config):
    """``config.json``. ``scale`` and ``offset`` are the loss's when training ended: fine-tuning
    goes on from them, or its first steps would undo what the weights know."""

    architecture: EncoderArchitecture
    audio: AudioSettings
    scale: float = Field(SCALE, gt=0)
    offset: float = OFFSET


def save_encoder(model: nn.Module, card: EncoderCard, folder: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with written_aside(folder / WEIGHTS_FILE) as aside:
        save_file(tensors, aside)
    with written_aside(folder / CONFIG_FILE) as aside:
        aside.write_text(card.to_json())


def open_encoder(path: Path) -> tuple[nn.Module, EncoderCard]:
    """A folder of this project, or a public ``.pt``. Raises ConfigError naming it."""
    check_exists(path)
    if path.is_file():
        card, weights = _public(path)
    else:
        card = EncoderCard.from_json(path / CONFIG_FILE)
        weights = load_file(path / WEIGHTS_FILE)
    model = build(card.architecture, card.audio)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{path} does not hold the weights of its architecture: {error}"
        ) from None
    return model.eval(), card


def _public(path: Path) -> tuple[EncoderCard, dict[str, torch.Tensor]]:
    """The encoder's card and tensors; the public files also hold an optimizer."""
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConfigError(f"{path} is no checkpoint of tensors alone: {error}") from None
    state = found.get("model_state") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise ConfigError(f"{path} has no model_state, as the public encoders have")
    card = EncoderCard(
        architecture=PUBLIC_ARCHITECTURE,
        audio=PUBLIC_AUDIO,
        scale=float(state.get("similarity_weight", SCALE)),
        offset=float(state.get("similarity_bias", OFFSET)),
    )
    return card, {k: v for k, v in state.items() if k.startswith(("lstm.", "linear."))}
