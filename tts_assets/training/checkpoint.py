"""Checkpoints for a restart: modules, optimizers, and how far the run is. One that is damaged is
passed over."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from tts_assets.artifacts import written_aside
from tts_assets.config import Config
from tts_assets.program import Run
from tts_assets.training.manifest import newest_whole, saved, write_manifest

KEEP = 2  # the newest, and one to fall back on


class Progress(Config):
    """How far a run is; ``recipe`` is the digest of recipe and data it belongs to."""

    step: int = 0
    recipe: str = ""


def save(
    folder: Path,
    progress: Progress,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
) -> None:
    """Write ``step-NNNNNNN`` aside, rename it, and drop all but the newest two."""
    with written_aside(folder / f"step-{progress.step:07d}") as aside:
        aside.mkdir()
        for name, module in modules.items():
            save_file(_tensors(module), aside / f"{name}.safetensors")
        states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        torch.save(states, aside / "optimizers.pt")
        (aside / "progress.json").write_text(progress.to_json())
        write_manifest(aside)
    for old in saved(folder)[:-KEEP]:
        shutil.rmtree(old)


def load(
    run: Run,
    recipe: str,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
) -> Progress:
    """Restore the newest whole checkpoint in place; a fresh :class:`Progress` if there is none."""
    newest = newest_whole(run)
    if newest is None:
        return Progress(recipe=recipe)
    progress = Progress.from_json(newest / "progress.json")
    if progress.recipe != recipe:
        raise ValueError(
            f"{newest} belongs to another recipe or other data; give the run another folder, or "
            f"delete {run.checkpoint_dir}"
        )
    for name, module in modules.items():
        module.load_state_dict(load_file(newest / f"{name}.safetensors"))
    states = torch.load(newest / "optimizers.pt", weights_only=True, map_location="cpu")
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(states[name])
    return progress


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
