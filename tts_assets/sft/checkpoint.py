"""Checkpoints for a restart: model, optimizers, and the place in the stream of samples.

The random state needs no file: what is random in step n follows from (seed, n, rank).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from tts_assets.artifacts import written_aside
from tts_assets.config import Config
from tts_assets.sft.optimizer import Optimizers

KEEP = 2  # the newest, and one to fall back on


class Progress(Config):
    """How far a run is. ``step`` steps are done; the rest is what the next step continues."""

    step: int = 0
    epoch: int = 0
    offset: int = 0
    tokens: int = 0
    speech_tokens: int = 0
    best_step: int = 0
    best_loss: float | None = None
    recipe: str = ""


def save(folder: Path, model: nn.Module, optimizers: Optimizers, progress: Progress) -> None:
    """Write ``step-NNNNNNN`` aside, rename it, and drop all but the newest ``KEEP``."""
    with written_aside(folder / f"step-{progress.step:07d}") as aside:
        aside.mkdir()
        save_model(model, str(aside / "model.safetensors"))
        torch.save(optimizers.state_dict(), aside / "optimizer.pt")
        (aside / "progress.json").write_text(progress.to_json())
    for old in saved(folder)[:-KEEP]:
        shutil.rmtree(old)


def saved(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first (an unfinished one never has its final name)."""
    return sorted(folder.glob("step-*"))


def load(folder: Path, model: nn.Module, optimizers: Optimizers, recipe: str) -> Progress:
    """Restore the newest checkpoint in place; a fresh :class:`Progress` if there is none."""
    checkpoints = saved(folder)
    if not checkpoints:
        return Progress(recipe=recipe)
    newest = checkpoints[-1]
    progress = Progress.from_json(newest / "progress.json")
    if progress.recipe != recipe:
        raise ValueError(
            f"{newest} belongs to another recipe or other data; give the run another folder, or "
            f"delete {folder}"
        )
    load_model(model, str(newest / "model.safetensors"))
    states: list[dict[str, Any]] = torch.load(
        newest / "optimizer.pt", weights_only=True, map_location="cpu"
    )
    optimizers.load_state_dict(states)
    return progress
