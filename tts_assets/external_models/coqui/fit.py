"""Coqui's trainer, told to report to the job's events and to stop where it can go on.

It saves models and optimizers, but neither its place within an epoch nor random states: after a
stop the epoch begins again from the saved weights.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from coqpit import Coqpit
from safetensors.torch import save_file
from trainer import Trainer, TrainerArgs
from trainer.logging.dummy_logger import DummyLogger

from tts_assets.external_models.coqui.job import CONFIG_FILE, STOPPED, Events, TrainJob

NEVER = 10**12
KEPT_CHECKPOINTS = 2
RUN = "run"


def train(job: TrainJob, config: Coqpit, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Train to the last epoch, with :func:`common_settings`; the weights that ``job.export`` names,
    on the CPU."""
    events = Events(job.events)
    earlier = earlier_run(Path(job.work))
    arguments = TrainerArgs(continue_path=str(earlier) if earlier else "")
    stop = StopRequest()

    def after_step(trainer: Trainer) -> None:
        total = job.epochs * len(trainer.train_loader)
        events.tell(done=min(trainer.total_steps_done, total), total=total)
        if stop.asked:
            raise KeyboardInterrupt  # the trainer saves, then calls:

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
        events.tell(note=f"going on from step {trainer.total_steps_done}")
    trainer.fit()
    events.tell(note=f"trained for {trainer.total_steps_done} steps")
    best = Path(trainer.output_path) / "best_model.pth"
    if job.export == "best" and best.is_file():
        return dict(torch.load(best, map_location="cpu", weights_only=True)["model"])
    return {name: value.detach().cpu() for name, value in trainer.model.state_dict().items()}


def common_settings(config: Coqpit, job: TrainJob) -> None:
    """What every family's run has, and then what the recipe lays over it."""
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
        "save_best_after": 0 if job.export == "best" else NEVER,
        "print_step": job.log_steps,
        "plot_step": job.log_steps,
        "log_model_step": NEVER,  # pictures of spectrograms, which nobody here looks at
        "test_delay_epochs": NEVER,
        "test_sentences": [],
    }
    overlay(config, values, Events(job.events))
    overlay(config, job.config, Events(job.events))


def overlay(config: Coqpit, values: dict[str, Any], events: Events, where: str = "config") -> None:
    """Set nested keys of a configuration; refuse those that it does not have."""
    for key, value in values.items():
        if not hasattr(config, key):
            events.refuse(f"{where}.{key}: coqui's {type(config).__name__} has no such key")
        inner = getattr(config, key)
        if isinstance(inner, Coqpit) and isinstance(value, dict):
            overlay(inner, value, events, f"{where}.{key}")
        else:
            setattr(config, key, value)


def earlier_run(work: Path) -> Path | None:
    """The folder of a run with a whole checkpoint; what a kill left half-written is deleted."""
    for path in work.glob(f"{RUN}-*/*.pth"):
        if not zipfile.is_zipfile(path):
            path.unlink()
    found = {path.parent for path in work.glob(f"{RUN}-*/*.pth")}
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)


class StopRequest:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class EventLogger(DummyLogger):
    """The trainer's numbers as events: losses of a step, and ``val_``: means of a validation."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def train_step_stats(self, step: int, stats: dict[str, float]) -> None:
        self._tell(step, stats, "")

    def eval_stats(self, step: int, stats: dict[str, float]) -> None:
        self._tell(step, stats, "val_")

    def _tell(self, step: int, stats: dict[str, float], prefix: str) -> None:
        plain = {f"{prefix}{name.removeprefix('avg_')}": float(stats[name]) for name in stats}
        self.events.tell(step=step, metrics=plain)


def read_samples(job: TrainJob, split: str) -> list[dict[str, Any]]:
    path = Path(job.dataset) / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write_config(job: TrainJob, config: Coqpit) -> None:
    (Path(job.result) / CONFIG_FILE).write_text(
        json.dumps(config.to_dict(), indent=1, sort_keys=True) + "\n"
    )


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Safetensors wants every tensor contiguous and in memory of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    save_file({name: value.detach().clone().contiguous() for name, value in weights.items()}, aside)
    aside.replace(path)


def main_of(name: str) -> str:
    """The one argument of a program of this folder."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m tts_assets.external_models.coqui.{name} job.json")
    return sys.argv[1]
