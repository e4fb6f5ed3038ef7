"""Codec folders: ``config.json``, ``model.safetensors``, and ``recipe.json`` of trained codecs.

``recipe.json`` records how published weights were trained. It has the keys of the canonical form
of the recipe (see :class:`~tts_assets.core.config.Config`), which renamed keys do not change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from tts_assets.codec.config import CODEBOOKS_FILE
from tts_assets.codec.training_config import TrainingRecipe
from tts_assets.codec.xcodec2 import SINGLE_BOUND, CompactConfig, CompactXcodec2
from tts_assets.core.artifacts import CodecFacts, atomic_write, sha256_file

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def is_compact(folder: Path) -> bool:
    """Whether a folder holds a codec of this project, as opposed to a published one."""
    path = folder / CONFIG_FILE
    return path.is_file() and json.loads(path.read_text()).get("quantizer_bound") == SINGLE_BOUND


def snac_sizes(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a SNAC, which names no model type; empty for another codec."""
    path = folder / CONFIG_FILE
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return values if "vq_strides" in values and "model_type" not in values else {}


def codebooks_of(folder: Path) -> int | None:
    """How many codebooks of a codec are used; None: all."""
    path = folder / CODEBOOKS_FILE
    return int(json.loads(path.read_text())["codebooks"]) if path.is_file() else None


def save_codec(
    model: PreTrainedModel,
    folder: Path,
    dtype: Literal["fp32", "fp16"],
    exact: Iterable[nn.Module] = (),
) -> None:
    """Write config and weights; ``fp16`` halves the file and is read back as float32.

    Tensors of the modules ``exact`` that half precision would change stay float32.
    """
    save_weights(model, folder, dtype, exact)
    model.config.architectures = [type(model).__name__]
    with atomic_write(folder / CONFIG_FILE) as aside:
        aside.write_text(model.config.to_json_string(use_diff=False))


def save_weights(
    model: nn.Module,
    folder: Path,
    dtype: Literal["fp32", "fp16"],
    exact: Iterable[nn.Module] = (),
) -> None:
    """Write ``model.safetensors``; tensors of the modules ``exact`` stay lossless."""
    kept = {id(t) for part in exact for t in part.state_dict(keep_vars=True).values()}
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        full = tensor.detach().cpu().contiguous()
        stored = full.to(DTYPES[dtype])
        lossy = id(tensor) in kept and not torch.equal(stored.to(full.dtype), full)
        tensors[name] = full if lossy else stored
    with atomic_write(folder / WEIGHTS_FILE) as aside:
        save_file(tensors, aside)


def read_weights(model: nn.Module, folder: Path) -> None:
    """Load ``model.safetensors`` into ``model`` as float32."""
    weights = load_file(folder / WEIGHTS_FILE)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})


def open_compact(folder: Path) -> CompactXcodec2:
    """Read a folder that :func:`save_codec` wrote; float32, on the CPU, in training mode.

    Raises ValueError for any other folder.
    """
    if not (folder / WEIGHTS_FILE).is_file() or not is_compact(folder):
        raise ValueError(
            f"{folder} is no codec of this project ({WEIGHTS_FILE} and a {CONFIG_FILE} with "
            f'"quantizer_bound": "{SINGLE_BOUND}")'
        )
    # Folders of earlier versions have the model type of X-Codec-2.
    values = json.loads((folder / CONFIG_FILE).read_text()) | {
        "model_type": CompactConfig.model_type
    }
    model = CompactXcodec2(CompactConfig.from_dict(values))
    read_weights(model, folder)
    return model.train()


def open_complete(kind: Any, folder: Path, hint: str = "", **settings: Any) -> Any:
    """A model of transformers in float32. ``kind`` is a class with ``from_pretrained``.

    Raises ValueError, whose message ends with ``hint``, if the folder lacks weights.
    """
    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **settings
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{folder} lacks {len(missing)} weights of the class {type(model).__name__}, the "
            f"first is {missing[0]}{hint}"
        )
    return model


def facts_of(model: PreTrainedModel) -> CodecFacts:
    """The facts of a codec of this project, X-Codec-2 or NeuCodec, which the next stages check."""
    config: Any = model.config
    rate = getattr(config, "output_sampling_rate", None) or config.sampling_rate
    return CodecFacts(
        sample_rate=rate,
        hop_length=config.hop_length,
        token_rate=rate / config.hop_length,
        codebook_size=math.prod(config.quantization_levels),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def write_recipe(recipe: TrainingRecipe, folder: Path, key: str, weights: Path | None) -> None:
    """Write ``recipe.json``.

    If the training started from ``weights``, their digest is written under ``key`` and the
    architecture, which is theirs, is left out. A path would mean nothing on another machine and
    would make equal results differ.
    """
    values = recipe.canonical()
    if weights is not None:
        values.pop("architecture", None)
        values[key] = sha256_file(weights)
    with atomic_write(folder / "recipe.json") as aside:
        aside.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
