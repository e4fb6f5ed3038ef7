"""What watches a TRL run: progress, metrics, stop requests, complete checkpoints, alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tts_assets.program import Run
from tts_assets.rlhf.alarms import Bell
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.engines import RolloutEngine
from tts_assets.rlhf.metrics import training_records

COMPLETE = "complete"  # marks a checkpoint that every rank has finished writing


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raise :class:`FloatingPointError` where an update has spoilt the weights: TRL logs it before
    it saves them."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values.get(name, 0.0)):
            raise FloatingPointError(
                f"the {name} of update {step} is {values[name]}: lower the recipe's learning_rate"
            )


class Watch(TrainerCallback):
    """Progress, metrics, stop requests and complete checkpoints of a TRL run."""

    def __init__(self, run: Run, recipe: RlhfRecipe, engine: RolloutEngine, first: int) -> None:
        self.run, self.recipe, self.engine = run, recipe, engine
        steps = range(first, recipe.steps)
        self.bar: Iterator[int] = iter(run.progress(steps, "rlhf", total=recipe.steps, start=first))
        self.stopped = self.collapsed = False
        self.bell = Bell(recipe.alarms, training_records(run.run_dir), run.note)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step % self.recipe.iterations == 0:
            next(self.bar)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Between two rollouts, stop if asked to: nothing is kept in TRL's buffers then."""
        if state.global_step % self.recipe.iterations or state.global_step == state.max_steps:
            return
        if self.run.should_stop():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        values = {k: round(v, 6) for k, v in (logs or {}).items() if isinstance(v, float)}
        if "reward" in values:
            check_finite(state.global_step, values)
            raised = self.bell.see(state.global_step, values)
            self.run.metrics(state.global_step, {**values, **self.engine.facts(), **raised})
            if raised and self.recipe.stop_on_collapse:
                self.collapsed = control.should_training_stop = True
                control.should_save = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if dist.is_initialized():
            dist.barrier()
        if self.run.is_main:
            (self.run.checkpoint_dir / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        next(self.bar, None)
