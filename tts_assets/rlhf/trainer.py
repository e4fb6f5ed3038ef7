"""What the trainings of GRPO and DPO share: TRL's arguments, adapters, checkpoints, callbacks.

A restart resumes from the newest complete checkpoint. A run that loses its engine or a reward
function saves a checkpoint before it ends.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState  # type: ignore[import-untyped]
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tts_assets.core.program import METRICS_FILE, Run, truncate_metrics
from tts_assets.rlhf.alarms import CollapseMonitor
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.dpo_config import DpoRecipe
from tts_assets.rlhf.engine_client import EngineError
from tts_assets.rlhf.reporting import training_records
from tts_assets.rlhf.rewards import RewardError
from tts_assets.rlhf.rollouts import RolloutsStopped
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine
from tts_assets.sft.config import Lora
from tts_assets.sft.model import lora_settings, lora_targets
from tts_assets.speechlm.model import SpeechLM

if TYPE_CHECKING:
    from peft import LoraConfig

Recipe = RlhfRecipe | DpoRecipe
COMPLETE = "complete"  # file in a checkpoint that all ranks have finished writing
MAX_GRAD_NORM = 1.0


def policy_lm(synthesizer: Synthesizer) -> SpeechLM:
    """Returns the model of a synthesizer, which is the policy."""
    assert isinstance(synthesizer.engine, TransformersEngine)
    return synthesizer.engine.lm


def prompt_order(prompts: int, count: int, seed: int) -> NDArray[np.int64]:
    """Returns ``count`` prompt indices, shape (count,): one permutation after the other."""
    epochs = -(-count // prompts)
    orders = [np.random.default_rng([seed, epoch]).permutation(prompts) for epoch in range(epochs)]
    return np.concatenate(orders)[:count]


def trainer_arguments(recipe: Recipe, run: Run, local: int) -> dict[str, Any]:
    """Returns the arguments that TRL's configurations of GRPO and DPO share.

    ``local``: completions or pairs of a step on each rank.
    """
    micro_batch = max(size for size in range(1, recipe.micro_batch + 1) if local % size == 0)
    on_gpu = run.device.type == "cuda"
    return {
        "output_dir": str(run.checkpoint_dir),
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": local // micro_batch,
        "learning_rate": recipe.learning_rate,
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "beta": recipe.beta,
        "save_steps": recipe.save_every * recipe.iterations,
        "save_total_limit": 2,
        "logging_steps": recipe.iterations,
        "logging_nan_inf_filter": False,  # check_finite must see losses that are not finite
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "seed": recipe.seed,
    }


def sharded(recipe: RlhfRecipe, run: Run) -> dict[str, Any]:
    """Returns TRL's arguments that shard the policy; none for a single rank, or under DDP."""
    if recipe.strategy == "ddp" or run.world_size == 1:
        return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}


def trained_model(arguments: TrainingArguments, whole: PreTrainedModel) -> PreTrainedModel:
    """Returns the model that TRL trains: ``whole``, or a copy that it shards.

    The copy is needed because completions differ in length between ranks, and each forward pass of
    a sharded model needs all ranks.
    """
    if not arguments.fsdp:
        return whole
    if arguments.use_cpu:  # accelerate shards on accelerators only, torch on CPUs, too
        PartialState().distributed_type = DistributedType.MULTI_GPU
    return copy.deepcopy(whole)


@torch.no_grad()
def gather_weights(trained: nn.Module | None, whole: nn.Module) -> None:
    """Copies the weights of a sharded policy to ``whole``, the model of rollouts and of the result.

    All ranks call it together. A policy that is not sharded is ``whole`` itself, or adapters in it.
    Raises TypeError if another copy of the policy is not sharded.
    """
    if trained is whole or isinstance(trained, PeftModel):
        return
    if not isinstance(trained, FSDPModule):
        raise TypeError(f"the trained copy of the policy is not sharded: {type(trained)}")
    shards = dict(trained.named_parameters())
    for name, parameter in whole.named_parameters():
        shard = shards[name]
        parameter.copy_(shard.full_tensor() if isinstance(shard, DTensor) else shard)


def adapter_config(recipe: Recipe, model: PreTrainedModel) -> LoraConfig | None:
    """Returns the adapters of all linear layers as peft's configuration; None without them."""
    if recipe.lora_rank is None:
        return None
    lora = Lora(rank=recipe.lora_rank, alpha=2 * recipe.lora_rank)
    settings = lora_settings(lora, lora_targets(model, lora))
    settings.task_type = "CAUSAL_LM"
    return settings


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint that all ranks have finished; None without one."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=updates_of, default=None)


def updates_of(checkpoint: Path) -> int:
    """Returns the number of optimizer updates of a checkpoint."""
    return int(checkpoint.name.partition("-")[2])


def resume(run: Run, recipe: Recipe, checkpoint: Path | None) -> int:
    """Removes the metrics after ``checkpoint``, and returns the number of steps it has made."""
    updates = updates_of(checkpoint) if checkpoint else 0
    if updates:
        run.note(f"resuming after update {updates} of {recipe.steps * recipe.iterations}")
    if run.is_main:
        truncate_metrics(run.run_dir / METRICS_FILE, updates)
    if dist.is_initialized():
        dist.barrier()  # all ranks read the truncated file
    return updates // recipe.iterations


class RunCallback(TrainerCallback):
    """Connects TRL's trainer to the run: progress, metrics, alarms, stops, checkpoints.

    ``metric``: the one that TRL logs after each step, and for nothing else.
    """

    metric = "reward"

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        other_metrics: Callable[[Mapping[str, float]], Mapping[str, float]],
        first: int,
    ) -> None:
        """Starts the progress bar and the monitor.

        Args:
            run: receives metrics, progress and notes.
            recipe: the recipe.
            other_metrics: returns further metrics of a step, whose logged values it gets.
            first: the number of steps before this start.
        """
        self.run, self.recipe, self.other_metrics = run, recipe, other_metrics
        steps = range(first, recipe.steps)
        self.bar: Iterator[int] = iter(run.progress(steps, "rlhf", total=recipe.steps, start=first))
        self.stopped = self.collapsed = False
        records = training_records(run.run_dir, self.metric)
        self.monitor = CollapseMonitor(recipe.alarms, records, run.note)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Advances the progress bar at the first update of a step."""
        if state.global_step % self.recipe.iterations == 0:
            next(self.bar)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stops between two rollouts, when TRL's buffers are empty."""
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
        """Writes the metrics of a step and checks them for alarms."""
        values = {k: round(v, 6) for k, v in (logs or {}).items() if isinstance(v, float)}
        if self.metric in values:
            check_finite(state.global_step, values)
            values |= self.other_metrics(values)
            raised = self.monitor.update(state.global_step, values)
            self.run.metrics(state.global_step, {**values, **raised})
            self.stop_if(raised, control)

    def stop_if(self, raised: Mapping[str, float], control: TrainerControl) -> None:
        """Ends a run with alarms without a further checkpoint, if the recipe says so."""
        if raised and self.recipe.stop_on_collapse:
            self.collapsed = control.should_training_stop = True
            control.should_save = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Marks a checkpoint as complete once all ranks have written it."""
        if dist.is_initialized():
            dist.barrier()
        if self.run.is_main:
            (self.run.checkpoint_dir / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ends the progress bar."""
        next(self.bar, None)


def check_finite(update: int, values: Mapping[str, float]) -> None:
    """Raises :class:`FloatingPointError` for a loss or a gradient norm that is not finite.

    TRL logs before it saves, so that no checkpoint has such weights.
    """
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values.get(name, 0.0)):
            raise FloatingPointError(
                f"the {name} of update {update} is {values[name]}: lower the recipe's learning_rate"
            )


def optimize(run: Run, trainer: Trainer, callback: RunCallback, checkpoint: Path | None) -> None:
    """Trains to the last step, or ends the program if it was asked to stop.

    Raises :class:`EngineError` or :class:`RewardError` after saving a checkpoint.
    """
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has all of its output
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (EngineError, RolloutsStopped) as error:
        save_checkpoint(trainer, callback)
        if isinstance(error, EngineError):
            raise
        callback.stopped = True
    except RewardError:
        if run.world_size == 1:  # other ranks are inside a step and cannot save
            save_checkpoint(trainer, callback)
        raise
    if callback.stopped:
        run.stopped()


def save_checkpoint(trainer: Trainer, callback: RunCallback) -> None:
    """Saves a checkpoint between two steps, before the run ends."""
    if trainer.state.global_step:
        assert trainer.model is not None
        trainer._save_checkpoint(trainer.model, trial=None)
        callback.on_save(trainer.args, trainer.state, trainer.control)


def restore(run: Run, recipe: Recipe, trainer: Trainer) -> int:
    """Loads the newest checkpoint before the collapse, and returns its number of steps.

    Raises RuntimeError if there is none.
    """
    checkpoint = newest_checkpoint(run.checkpoint_dir)
    if checkpoint is None:
        raise RuntimeError(
            f"the policy collapsed before the first checkpoint at step {recipe.save_every}. Use a "
            "lower learning_rate, a KL divergence (beta), or another reward in addition"
        )
    trainer._load_from_checkpoint(str(checkpoint))
    steps = updates_of(checkpoint) // recipe.iterations
    run.note(f"the policy collapsed: the result has the weights of step {steps} of {recipe.steps}")
    return steps
