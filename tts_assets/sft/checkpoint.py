"""Checkpoints for a restart, and the published result of a run.

A checkpoint is a folder ``step-NNNNNNN``. It has the tensors as safetensors, one file a rank,
written and read by torch.distributed.checkpoint (DCP); ``progress.json``; and ``manifest.json``
with the size and SHA-256 of each file. No pickle is written or read: the default format of DCP
keeps its metadata in a pickle, the safetensors format needs none. There is no random state: the
random numbers of step n follow from (seed, n, rank).

A training step waits for the copy of the state into memory, not for the disk: :class:`Saver` writes
in a background thread. Several nodes need a shared file system.

:func:`export` writes the result, a Hugging Face model folder. :func:`facts` are its facts.
"""

from __future__ import annotations

import shutil
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.core.artifacts import atomic_write, fsync, fsync_tree
from tts_assets.core.config import Config
from tts_assets.core.program import publish_metrics
from tts_assets.core.training import newest_intact, rank, saved, step_of, world_size, write_manifest
from tts_assets.sft.config import CheckpointConfig, SftProgram
from tts_assets.sft.monitoring import SPEED, GuardState
from tts_assets.sft.strategies import Strategy, Tensors
from tts_assets.speechlm.model import SpeechLM

P = ParamSpec("P")
PROGRESS = "progress.json"
TRAIN_LOSS_SHARE = 0.05  # the published train_loss is the mean over the last 5 % of the steps
# DCP warns about runs of one rank, which have no process group.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or it belongs to another run."""


class SftProgress(Config):
    """The progress of a run, as ``progress.json`` has it.

    ``step`` optimizer steps are done. ``epoch`` and ``offset`` are the state of the sample stream.
    ``tokens`` and ``speech_tokens`` were trained on. ``recipe`` and ``vocabulary`` are digests of
    what the run belongs to.
    """

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


class Saver:
    """A thread that runs one write after another. An error of a write is raised by the trainer."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._pending: dict[str, Future[None]] = {}

    def submit(self, kind: str, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run ``work`` in the background, after waiting for the previous one of this kind."""
        self.wait(kind)
        self._pending[kind] = self._thread.submit(work, *args, **kwargs)

    def check(self) -> None:
        """Raise the error of a write that has failed meanwhile."""
        for kind, future in list(self._pending.items()):
            if future.done():
                self.wait(kind)

    def wait(self, *kinds: str) -> None:
        """Wait for the writes of these kinds; without arguments, for all."""
        for kind in kinds or list(self._pending):
            if kind in self._pending:
                self._pending.pop(kind).result()


class Checkpoints:
    """The checkpoints of one run. Every rank has an instance and makes the same calls."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        self.folder, self.config, self.device, self.log = folder, config, device, log
        self.saver = Saver()
        copy = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        self._stager = DefaultStager(copy)
        # A separate group: messages of the saver would interleave with those of training.
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None

    def save(self, strategy: Strategy, progress: SftProgress) -> None:
        """Copy the state, and write it in the background."""
        self.saver.wait("checkpoint")  # the copy reuses the memory of the previous one
        copy = self._stager.stage(strategy.state())
        assert isinstance(copy, dict)  # not a future: staging is not asynchronous
        self.saver.submit("checkpoint", self._write, copy, progress)

    def _write(self, state: Tensors, progress: SftProgress) -> None:
        """All ranks write their files; rank 0 adds the manifest and publishes the folder."""
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
        except CheckpointException as error:  # a BaseException, which callers do not expect
            raise CheckpointError(f"{final} could not be written: {error}") from error
        if rank() != 0:
            return
        (aside / PROGRESS).write_text(progress.to_json())
        write_manifest(aside)
        fsync_tree(aside)
        if final.is_dir():  # a stop request at a step that is saved anyway
            shutil.rmtree(final)
        aside.replace(final)
        fsync(self.folder)
        self._rotate(progress)

    def _rotate(self, progress: SftProgress) -> None:
        """Remove old checkpoints, and best weights that no kept checkpoint refers to."""
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
        """Load the newest intact checkpoint. Returns ``fresh`` if there is none.

        Raises :class:`CheckpointError` if its recipe or vocabulary is not that of ``fresh``.
        """
        folder = newest_intact(self.folder, self.device, self.log)
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
        """Write the gathered weights of the best step in the background (rank 0)."""
        self.saver.submit("best", _write_weights, weights, self._best(step))

    def load_best(self, step: int) -> Tensors:
        """The weights that :meth:`save_best` wrote."""
        return load_file(self._best(step))

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step:07d}.safetensors"


def _write_weights(weights: Tensors, path: Path) -> None:
    with atomic_write(path) as aside:
        save_file(weights, str(aside))


def export(
    run_dir: Path, result: Path, lm: SpeechLM, weights: Tensors | None, dropped: Sequence[SetAside]
) -> None:
    """Write the folder ``result`` (rank 0): the model, its metrics, and the dropped samples.

    ``weights`` None: those of ``lm``. Metrics of speed are left out.
    """
    lm.save(result, weights=weights)
    publish_metrics(run_dir, result, without=SPEED)
    write_set_aside(result / SET_ASIDE_FILE, dropped)


def facts(
    records: Sequence[Mapping[str, float]],
    program: SftProgram,
    lm: SpeechLM,
    parameters: int,
    progress: SftProgress,
) -> dict[str, object]:
    """The facts of the Checkpoint artifact. ``records`` are the lines of ``metrics.jsonl``."""
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
