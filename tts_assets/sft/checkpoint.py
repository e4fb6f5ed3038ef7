"""Checkpoints for a restart: weights, moments, and the place in the stream of samples.

A folder ``step-NNNNNNN`` has the tensors as safetensors, a file a rank, written and read by
torch.distributed.checkpoint; ``progress.json``; and ``manifest.json``, the size and SHA-256 of each
file. No pickle is written or read: DCP's own format keeps its metadata in one, that of safetensors
needs none. The random state needs no file: what is random in step n follows from (seed, n, rank).

A training step waits for the copy into memory, not for the disk. Several nodes need one file
system.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from tts_assets.artifacts import fsync, fsync_tree, written_aside
from tts_assets.config import Config
from tts_assets.program import Run
from tts_assets.sft.guards import GuardState
from tts_assets.sft.saver import Saver
from tts_assets.sft.strategies.base import Strategy, Tensors
from tts_assets.sft.tables import CheckpointConfig
from tts_assets.training.manifest import newest_whole, saved, step_of, write_manifest

PROGRESS = "progress.json"
# One rank has no process group, and says so itself.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not fit the run."""


class Progress(Config):
    """How far a run is. ``step`` steps are done; the rest is what the next step continues."""

    step: int = 0
    epoch: int = 0
    offset: int = 0
    tokens: int = 0
    speech_tokens: int = 0
    best_step: int = 0
    best_loss: float | None = None
    guards: GuardState = GuardState()
    recipe: str = ""
    vocabulary: str = ""


class Checkpoints:
    """Those of one run; every rank has one of these and calls the same at the same step."""

    def __init__(self, run: Run, config: CheckpointConfig) -> None:
        self.run, self.config = run, config
        self.folder = run.checkpoint_dir
        self.saver = Saver()
        copy = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        self._stager = DefaultStager(copy)
        # A group of its own: the saver's messages would mix with those of training.
        self._group = dist.new_group(backend="gloo") if run.world_size > 1 else None

    def save(self, strategy: Strategy, progress: Progress) -> None:
        """Copy the state, and write it in the background."""
        self.saver.wait("checkpoint")  # the copy goes where that of the checkpoint before was
        copy = self._stager.stage(strategy.state())
        assert isinstance(copy, dict)  # not a future of one: staging is not asynchronous
        self.saver.submit("checkpoint", self._write, copy, progress)

    def _write(self, state: Tensors, progress: Progress) -> None:
        """All ranks write their files; rank 0 verifies and publishes them."""
        final = self.folder / f"step-{progress.step:07d}"
        aside = self.folder / f".{final.name}.tmp"
        writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
        try:
            dcp.save(
                state,
                storage_writer=writer,
                process_group=self._group,
                no_dist=self._group is None,
            )
        except CheckpointException as error:  # a BaseException, which nobody expects
            raise CheckpointError(f"{final} could not be written: {error}") from error
        if not self.run.is_main:
            return
        (aside / PROGRESS).write_text(progress.to_json())
        write_manifest(aside)
        fsync_tree(aside)
        if final.is_dir():  # a save that was asked for at a step that is saved anyway
            shutil.rmtree(final)
        aside.replace(final)
        fsync(self.folder)
        self._rotate(progress)

    def _rotate(self, progress: Progress) -> None:
        """Drop what neither the configuration nor a kept checkpoint needs."""
        every = self.config.keep_every
        for old in saved(self.folder)[: -self.config.keep_last]:
            if every is None or step_of(old) % every:
                shutil.rmtree(old)
        kept = [Progress.from_json(folder / PROGRESS) for folder in saved(self.folder)]
        needed = {kept_one.best_step for kept_one in kept} | {progress.best_step}
        for best in self.folder.glob("best-*.safetensors"):
            if step_of(best) not in needed and step_of(best) < progress.step:
                best.unlink()

    def load(self, strategy: Strategy, fresh: Progress) -> Progress:
        """Restore the newest whole checkpoint; ``fresh`` if there is none."""
        folder = newest_whole(self.run)
        if folder is None:
            return fresh
        progress = Progress.from_json(folder / PROGRESS)
        if (progress.recipe, progress.vocabulary) != (fresh.recipe, fresh.vocabulary):
            raise CheckpointError(
                f"{folder} belongs to another recipe or other data; give the run another folder, "
                f"or delete {self.folder}"
            )

        def read(tensors: Tensors) -> None:
            reader = HuggingFaceStorageReader(str(folder))
            dcp.load(
                tensors,
                storage_reader=reader,
                process_group=self._group,
                no_dist=self._group is None,
            )

        strategy.load(read, progress.step)
        return progress

    def save_best(self, weights: Tensors, step: int) -> None:
        """Write whole weights in the background (rank 0)."""
        self.saver.submit("best", _write_weights, weights, self._best(step))

    def load_best(self, step: int) -> Tensors:
        return load_file(self._best(step))

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:07d}.safetensors"


def _write_weights(weights: Tensors, path: Path) -> None:
    with written_aside(path) as aside:
        save_file(weights, str(aside))
