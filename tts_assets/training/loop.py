"""The loop over the steps of a training: figures, saving, stop, and exact resume.

A subclass says what a step is. What is random in step n follows from (seed, n, rank), so a
checkpoint holds modules and optimizers and no random state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from tts_assets.core.config import digest_of
from tts_assets.core.program import METRICS_FILE, Run, truncate_metrics
from tts_assets.training import checkpoint


class Schedule(Protocol):
    """What a recipe says of the loop, in steps."""

    @property
    def steps(self) -> int: ...

    @property
    def eval_every(self) -> int: ...

    @property
    def save_every(self) -> int: ...


class StepLoop(ABC):
    """One rank's part of a run. A subclass fills :attr:`modules` and :attr:`optimizers` with
    everything that learns, and then calls :meth:`resume`."""

    what: str  # as progress names it
    recipe: Any  # a Schedule, and what the subclass needs of it
    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]

    def __init__(self, run: Run, recipe: Schedule) -> None:
        self.run, self.recipe = run, recipe

    @abstractmethod
    def train_step(self, step: int) -> dict[str, float]:
        """Take step ``step``, counted from 0; returns its figures."""

    @abstractmethod
    def held_out(self) -> dict[str, float]:
        """Figures on what is not trained on, every ``eval_every`` steps and after the last."""

    def resume(self, identity: Mapping[str, Any]) -> None:
        """Go on from the newest whole checkpoint of the run folder, if there is one. ``identity``:
        all that decides the result; a folder of another one is refused with a ValueError."""
        progress = checkpoint.load(self.run, digest_of(identity), self.modules, self.optimizers)
        self.identity, self.step = progress.recipe, progress.step
        if self.run.is_main:  # a kill may have left figures of steps that are taken again
            truncate_metrics(self.run.run_dir / METRICS_FILE, self.step)
        if self.step:
            self.run.note(f"resuming after step {self.step} of {self.recipe.steps}")

    def train(self) -> None:
        """Train to the last step, measuring and saving on the way; a request to stop is followed
        by a save and the end of the program."""
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
        """A checkpoint for a restart (rank 0 has all there is to save)."""
        if self.run.is_main:
            progress = checkpoint.Progress(step=self.step, recipe=self.identity)
            checkpoint.save(self.run.checkpoint_dir, progress, self.modules, self.optimizers)
