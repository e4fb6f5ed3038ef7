"""The training loop of small models, their checkpoints, and collectives of ranks.

:class:`StepLoop` takes steps, reports metrics, saves and resumes. A subclass defines what a step
is. The random state of step n follows from (seed, n, rank), so a checkpoint holds modules,
optimizers and the number of steps, but no random state.

A checkpoint is a folder ``step-NNNNNNN``. It is written to a temporary folder and renamed, and its
``manifest.json`` has the size and the SHA-256 of each file. A run resumes from the newest
checkpoint whose files match the manifest.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tts_assets.core.artifacts import atomic_write, sha256_file
from tts_assets.core.config import Config, digest_of
from tts_assets.core.program import METRICS_FILE, Run, truncate_metrics

MANIFEST = "manifest.json"  # size and SHA-256 of each file of a checkpoint
KEEP = 2  # checkpoints: the newest, and one to fall back on if it is damaged


class Schedule(Protocol):
    """The part of a recipe that :class:`StepLoop` reads. All values are numbers of steps."""

    @property
    def steps(self) -> int: ...

    @property
    def eval_every(self) -> int: ...

    @property
    def save_every(self) -> int: ...


class Progress(Config):
    """Steps done, and the digest of the recipe and data that the checkpoint belongs to."""

    step: int = 0
    recipe: str = ""


class StepLoop(ABC):
    """One rank's part of a training run.

    A subclass sets :attr:`modules` and :attr:`optimizers` to everything that is trained, and then
    calls :meth:`resume`.
    """

    what: str  # the name of the run in progress messages
    recipe: Any  # a Schedule with the further settings of the subclass
    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]

    def __init__(self, run: Run, recipe: Schedule) -> None:
        self.run, self.recipe = run, recipe

    @abstractmethod
    def train_step(self, step: int) -> dict[str, float]:
        """Take step ``step``, counted from 0. Returns its metrics."""

    @abstractmethod
    def held_out(self) -> dict[str, float]:
        """Metrics of the validation data, every ``eval_every`` steps and after the last step."""

    def resume(self, identity: Mapping[str, Any]) -> None:
        """Load the newest intact checkpoint of the run folder, if there is one.

        ``identity`` is everything that determines the result. Raises ValueError if the checkpoint
        was written for another identity.
        """
        progress = load(self.run, digest_of(identity), self.modules, self.optimizers)
        self.identity, self.step = progress.recipe, progress.step
        if self.run.is_main:  # a killed run may have logged steps that are now repeated
            truncate_metrics(self.run.run_dir / METRICS_FILE, self.step)
        if self.step:
            self.run.note(f"resuming after step {self.step} of {self.recipe.steps}")

    def train(self) -> None:
        """Train to the last step, with validations and saves on the way.

        After a stop request it saves and ends the program with
        :data:`~tts_assets.core.program.STOPPED`.
        """
        steps, first = self.recipe.steps, self.step
        for step in self.run.progress(range(first, steps), self.what, total=steps, start=first):
            report = self.train_step(step)
            self.step = step + 1
            if self.step % self.recipe.eval_every == 0 or self.step == steps:
                report |= self.held_out()
            self.run.metrics(self.step, report)
            stop = self.run.should_stop()
            if stop or self.step % self.recipe.save_every == 0 or self.step == steps:
                self.save()
            if stop and self.step < steps:
                self.run.stopped()

    def save(self) -> None:
        """Write a checkpoint. Rank 0 holds the whole state, so only rank 0 writes."""
        if self.run.is_main:
            progress = Progress(step=self.step, recipe=self.identity)
            save(self.run.checkpoint_dir, progress, self.modules, self.optimizers)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers of a rank in step ``step``, for example of dropout."""
    return int(digest_of([seed, step, rank])[:12], 16)


def save(
    folder: Path,
    progress: Progress,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
) -> None:
    """Write ``folder/step-NNNNNNN`` atomically and remove all but the newest :data:`KEEP`."""
    with atomic_write(folder / f"step-{progress.step:07d}") as aside:
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
    """Load the newest intact checkpoint into ``modules`` and ``optimizers``.

    Returns a new :class:`Progress` if there is no checkpoint. Raises ValueError if the checkpoint
    belongs to another ``recipe`` (a digest).
    """
    newest = newest_intact(run.checkpoint_dir, run.device, run.note)
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


def saved(folder: Path) -> list[Path]:
    """The published checkpoints of a run, oldest first. Unfinished ones have a temporary name."""
    return sorted(folder.glob("step-*"))


def step_of(path: Path) -> int:
    """The step in a file name: ``step-0000005`` and ``best-0000005.safetensors`` -> 5."""
    return int(path.stem.rpartition("-")[2])


def newest_intact(folder: Path, device: torch.device, log: Callable[[str], None]) -> Path | None:
    """The newest intact checkpoint of ``folder``, the same on all ranks. None if there is none.

    Rank 0 removes unfinished and damaged checkpoints that are newer.
    """
    newest = _remove_broken(folder, log) if rank() == 0 else None
    step = from_main(-1 if newest is None else step_of(newest), device)
    return None if step < 0 else folder / f"step-{step:07d}"


def _remove_broken(folder: Path, log: Callable[[str], None]) -> Path | None:
    for unfinished in folder.glob(".*.tmp"):
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    for checkpoint in reversed(saved(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        log(f"{checkpoint.name} is passed over and removed: {problem}")
        shutil.rmtree(checkpoint)
    return None


def write_manifest(checkpoint: Path) -> None:
    """Write ``manifest.json`` for the files that the folder has now."""
    (checkpoint / MANIFEST).write_text(json.dumps(_described(checkpoint), indent=2) + "\n")


def damage(checkpoint: Path) -> str | None:
    """The first difference between a checkpoint's files and its manifest; None if there is none."""
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
    """Size and digest of each file. Files have gigabytes, so threads hash them in parallel."""
    files = sorted(file for file in checkpoint.iterdir() if file.name != MANIFEST)
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(sha256_file, files))
    return {
        file.name: {"size": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, digests, strict=True)
    }


# Collectives that also work without a process group, that is with one rank.


def rank() -> int:
    """The number of this rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(values: list[float | Tensor], device: torch.device) -> list[float]:
    """The sum of each value over all ranks, in float64. Shape (values,)."""
    tensor = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if dist.is_initialized():
        tensor = tensor.to(device)
        dist.all_reduce(tensor)
    return tensor.tolist()


def from_main(value: int, device: torch.device) -> int:
    """Broadcast the value of rank 0."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, device=device)
    dist.broadcast(tensor, src=0)
    return int(tensor)


def wait_for_all() -> None:
    """A barrier over all ranks."""
    if dist.is_initialized():
        dist.barrier()
