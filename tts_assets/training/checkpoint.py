"""Checkpoints for a restart: modules, optimizers, and how far the run is. One that is damaged is
passed over.

What a folder of checkpoints holds, and whether each is what was written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from tts_assets.core.artifacts import sha256_file, written_aside
from tts_assets.core.config import Config
from tts_assets.core.program import Run
from tts_assets.core.ranks import from_main

MANIFEST = "manifest.json"  # size and SHA-256 of each file of a checkpoint


def saved(folder: Path) -> list[Path]:
    """Published checkpoints, oldest first (an unfinished one never has its final name)."""
    return sorted(folder.glob("step-*"))


def step_of(path: Path) -> int:
    """``step-0000005``, ``best-0000005.safetensors`` -> 5."""
    return int(path.stem.rpartition("-")[2])


def newest_whole(run: Run) -> Path | None:
    """The newest whole checkpoint of a run, the same one on every rank; None if there is none.
    Unfinished and damaged ones after it are removed."""
    newest = _remove_broken(run) if run.is_main else None
    step = from_main(-1 if newest is None else step_of(newest), run.device)
    return None if step < 0 else run.checkpoint_dir / f"step-{step:07d}"


def _remove_broken(run: Run) -> Path | None:
    for unfinished in run.checkpoint_dir.glob(".*.tmp"):
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    for checkpoint in reversed(saved(run.checkpoint_dir)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        run.note(f"{checkpoint.name} is passed over and removed: {problem}")
        shutil.rmtree(checkpoint)
    return None


def write_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).write_text(json.dumps(_described(checkpoint), indent=2) + "\n")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None if they are what was written."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text())
    except (FileNotFoundError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    missing = [name for name in expected if not (checkpoint / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    found = _described(checkpoint)
    for name, entry in expected.items():
        if found[name] != entry:
            how = "truncated" if found[name]["size"] < entry["size"] else "changed"
            return f"{name} is {how}"
    return None


def _described(checkpoint: Path) -> dict[str, dict[str, int | str]]:
    """Size and digest of each file; digests in parallel, since a file is gigabytes."""
    files = sorted(file for file in checkpoint.iterdir() if file.name != MANIFEST)
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(sha256_file, files))
    return {
        file.name: {"size": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, digests, strict=True)
    }


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
