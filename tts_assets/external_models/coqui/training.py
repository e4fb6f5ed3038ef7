"""Training with coqui's trainer: the settings, samples and weights that all models share.

The trainer writes its metrics to the job's events, and stops where it can resume. It saves models
and optimizers, but neither its position within an epoch nor random states: after a stop the epoch
starts again from the saved weights.
"""

from __future__ import annotations

import json
import os
import signal
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from coqpit import Coqpit
from safetensors.torch import save_file
from trainer import Trainer, TrainerArgs
from trainer.logging.dummy_logger import DummyLogger

from tts_assets.external_models.coqui import (
    CONFIG_FILE,
    STOPPED,
    Events,
    TrainJob,
)

NEVER = 10**12
KEPT_CHECKPOINTS = 2
RUN = "run"


def fit(job: TrainJob, config: Coqpit, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Train to the last epoch, with :func:`common_settings`; returns the weights by name, on CPU.

    A stop request saves a checkpoint and ends the process with status ``STOPPED``.
    """
    events = Events(job.events)
    earlier = earlier_run(Path(job.work))
    arguments = TrainerArgs(continue_path=str(earlier) if earlier else "")
    stop = StopRequest()

    def after_step(trainer: Trainer) -> None:
        total = job.epochs * len(trainer.train_loader)
        events.write(done=min(trainer.total_steps_done, total), total=total)
        if stop.requested:
            raise KeyboardInterrupt  # the trainer saves, and then calls leave()

    def leave(trainer: Trainer) -> None:
        os._exit(STOPPED)

    trainer = Trainer(
        arguments,
        config,
        output_path=job.work,
        model=model,
        train_samples=read_samples(job, "train"),
        eval_samples=read_samples(job, "val"),
        dashboard_logger=EventLogger(events),
        parse_command_line_args=False,
        callbacks={"on_train_step_end": after_step, "on_keyboard_interrupt": leave},
    )
    if earlier is not None:
        events.write(note=f"resuming at step {trainer.total_steps_done}")
    trainer.fit()
    events.write(note=f"trained for {trainer.total_steps_done} steps")
    return {name: value.detach().cpu() for name, value in trainer.model.state_dict().items()}


def common_settings(config: Coqpit, job: TrainJob) -> None:
    """Set the keys that are the same for all models, then those of the recipe."""
    values = {
        "run_name": RUN,
        "output_path": "",
        "epochs": job.epochs,
        "batch_size": job.batch_size,
        "eval_batch_size": job.batch_size,
        "run_eval": (Path(job.dataset) / "val.jsonl").stat().st_size > 0,
        "training_seed": job.seed,
        "save_step": job.save_steps,
        "save_n_checkpoints": KEPT_CHECKPOINTS,
        "save_best_after": NEVER,
        "print_step": job.log_steps,
        "plot_step": job.log_steps,
        "log_model_step": NEVER,  # spectrogram plots, which nothing reads
        "test_delay_epochs": NEVER,
        "test_sentences": [],
    }
    overlay(config, values, Events(job.events))
    overlay(config, job.config, Events(job.events))


def overlay(config: Coqpit, values: dict[str, Any], events: Events, where: str = "config") -> None:
    """Set nested keys of a configuration; refuse the job for a key that does not exist."""
    for key, value in values.items():
        if not hasattr(config, key):
            events.refuse(f"{where}.{key}: coqui's {type(config).__name__} has no such key")
        inner = getattr(config, key)
        if isinstance(inner, Coqpit) and isinstance(value, dict):
            overlay(inner, value, events, f"{where}.{key}")
        else:
            setattr(config, key, value)


def earlier_run(work: Path) -> Path | None:
    """The folder of a run with a complete checkpoint; deletes incomplete files of a killed run."""
    for path in work.glob(f"{RUN}-*/*.pth"):
        if not zipfile.is_zipfile(path):
            path.unlink()
    found = {path.parent for path in work.glob(f"{RUN}-*/*.pth")}
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)


class StopRequest:
    """Whether SIGTERM was received."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class EventLogger(DummyLogger):
    """Writes the trainer's metrics as events: training steps, and validation means as ``val_``."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def train_step_stats(self, step: int, stats: dict[str, float]) -> None:
        """Write the losses of a training step."""
        self._write(step, stats, "")

    def eval_stats(self, step: int, stats: dict[str, float]) -> None:
        """Write the means of a validation."""
        self._write(step, stats, "val_")

    def _write(self, step: int, stats: dict[str, float], prefix: str) -> None:
        plain = {f"{prefix}{name.removeprefix('avg_')}": float(stats[name]) for name in stats}
        self.events.write(step=step, metrics=plain)


def read_samples(job: TrainJob, split: str) -> list[dict[str, Any]]:
    """The clips of a split as coqui's dictionaries."""
    path = Path(job.dataset) / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write_config(job: TrainJob, config: Coqpit) -> None:
    """Write the model's ``config.json``."""
    (Path(job.result) / CONFIG_FILE).write_text(
        json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"
    )


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights as safetensors, which needs contiguous tensors that share no memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    copies = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    save_file(copies, temporary)
    temporary.replace(path)
