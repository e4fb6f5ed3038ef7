"""Work of the disk beside that of training.

Checkpoints for a restart: weights, moments, and the place in the stream of samples.

A folder ``step-NNNNNNN`` has the tensors as safetensors, a file a rank, written and read by
torch.distributed.checkpoint; ``progress.json``; and ``manifest.json``, the size and SHA-256 of each
file. No pickle is written or read: DCP's own format keeps its metadata in one, that of safetensors
needs none. The random state needs no file: what is random in step n follows from (seed, n, rank).

A training step waits for the copy into memory, not for the disk. Several nodes need one file
system.

The result of a run: a Hugging Face folder, and what goes with it.
"""

from __future__ import annotations

import shutil
import statistics
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from tts_assets.core.accounting import SET_ASIDE_FILE, write_set_aside
from tts_assets.core.artifacts import fsync, fsync_tree, written_aside
from tts_assets.core.config import Config
from tts_assets.core.program import Run, publish_metrics, read_metrics
from tts_assets.core.training import newest_intact, saved, step_of, write_manifest
from tts_assets.sft.config import CheckpointConfig, SftProgram
from tts_assets.sft.dataset import SampleDataset
from tts_assets.sft.monitoring import SPEED, GuardState
from tts_assets.sft.strategies import Strategy, Tensors
from tts_assets.speechlm.model import SpeechLM

P = ParamSpec("P")


class Saver:
    """A thread that writes one thing after another; what fails there fails the trainer."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._pending: dict[str, Future[None]] = {}

    def submit(self, kind: str, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Write in the background; first waits for the one before of its kind."""
        self.wait(kind)
        self._pending[kind] = self._thread.submit(work, *args, **kwargs)

    def check(self) -> None:
        """Raise the error of a write that has failed meanwhile."""
        for kind, future in list(self._pending.items()):
            if future.done():
                self.wait(kind)

    def wait(self, *kinds: str) -> None:
        """Until these are written, or everything."""
        for kind in kinds or list(self._pending):
            if kind in self._pending:
                self._pending.pop(kind).result()


PROGRESS = "progress.json"
# One rank has no process group, and says so itself.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not fit the run."""


class SftProgress(Config):
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

    def save(self, strategy: Strategy, progress: SftProgress) -> None:
        """Copy the state, and write it in the background."""
        self.saver.wait("checkpoint")  # the copy goes where that of the checkpoint before was
        copy = self._stager.stage(strategy.state())
        assert isinstance(copy, dict)  # not a future of one: staging is not asynchronous
        self.saver.submit("checkpoint", self._write, copy, progress)

    def _write(self, state: Tensors, progress: SftProgress) -> None:
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

    def _rotate(self, progress: SftProgress) -> None:
        """Drop what neither the configuration nor a kept checkpoint needs."""
        every = self.config.keep_every
        for old in saved(self.folder)[: -self.config.keep_last]:
            if every is None or step_of(old) % every:
                shutil.rmtree(old)
        kept = [SftProgress.from_json(folder / PROGRESS) for folder in saved(self.folder)]
        needed = {kept_one.best_step for kept_one in kept} | {progress.best_step}
        for best in self.folder.glob("best-*.safetensors"):
            if step_of(best) not in needed and step_of(best) < progress.step:
                best.unlink()

    def load(self, strategy: Strategy, fresh: SftProgress) -> SftProgress:
        """Restore the newest whole checkpoint; ``fresh`` if there is none."""
        folder = newest_intact(self.folder, self.run.is_main, self.run.device, self.run.note)
        if folder is None:
            return fresh
        progress = SftProgress.from_json(folder / PROGRESS)
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


TRAIN_LOSS_SHARE = 0.05  # the published train_loss is the mean over the last steps


def export(run: Run, lm: SpeechLM, weights: Tensors | None, pools: Sequence[SampleDataset]) -> None:
    """Write ``result/`` (rank 0); ``weights`` None: those of ``lm``."""
    folder = run.result_dir
    lm.save(folder, weights=weights)
    publish_metrics(run.run_dir, folder, without=SPEED)
    write_set_aside(folder / SET_ASIDE_FILE, [item for pool in pools for item in pool.dropped])


def facts(
    run: Run, program: SftProgram, lm: SpeechLM, parameters: int, progress: SftProgress
) -> dict[str, object]:
    """The facts of a Checkpoint artifact."""
    records = read_metrics(run.run_dir / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    speeds = [record["tokens_per_second"] for record in records if "loss" in record]
    last = losses[-max(1, round(TRAIN_LOSS_SHARE * len(losses))) :]
    val_losses = {r["step"]: r["val_loss"] for r in records if "val_loss" in r}
    at = progress.best_step if program.recipe.export == "best" else progress.step
    return {
        "stage": "sft",
        "recipe": program.name,
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_loss": round(sum(last) / len(last), 5) if last else None,
        "val_loss": val_losses.get(at, last[-1] if last else None),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "parameters": parameters,
        "vocabulary": lm.vocabulary.digest,
        "codec": program.codec,
        "sample_rate": program.sample_rate,
        "token_rate": program.token_rate,
        "codebook_size": program.codebook_size,
    }
