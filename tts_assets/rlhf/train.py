"""The GRPO program: ``torchrun --nproc-per-node N -m tts_assets.rlhf.train run.json``.

GRPO is DeepSeekMath, arXiv 2402.03300. TRL's ``GRPOTrainer`` has the algorithm: advantages,
clipping, KL divergence, loss variants (Dr. GRPO: arXiv 2503.20783, DAPO: arXiv 2503.14476). This
project generates the rollouts and computes the rewards.

TRL's log-probabilities are over the whole vocabulary, while rollouts sample speech tokens only. The
difference is the probability of text after ``<|speech_start|>``, below 1e-4 in a fine-tuned model.

The order of prompts and the seeds of completions follow from the recipe and its seed. A restart
resumes from the newest complete checkpoint and ends with the same weights. A run that loses its
engine or a reward function saves a checkpoint before it ends.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset  # type: ignore[import-untyped]
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tts_assets.core.program import (
    METRICS_FILE,
    Run,
    load_config,
    truncate_metrics,
)
from tts_assets.rlhf.alarms import CollapseMonitor
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe
from tts_assets.rlhf.dpo_config import DpoRecipe
from tts_assets.rlhf.engine_client import EngineError
from tts_assets.rlhf.prompts import RolloutPrompt, check_languages, read_prompts
from tts_assets.rlhf.reporting import (
    FOLDER,
    combined,
    export,
    rollout_record,
    save_completions,
    training_records,
)
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rewards import RewardError
from tts_assets.rlhf.rollouts import (
    HeldOutEvaluation,
    RolloutsStopped,
    RolloutWorker,
    hold_out,
    open_engine,
)
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine
from tts_assets.sft.config import Lora
from tts_assets.sft.model import lora_settings, lora_targets
from tts_assets.speechlm.model import SpeechLM

with warnings.catch_warnings():
    # TRL warns about the version of vLLM for a client of its own, which is not used here.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
    from trl import GRPOConfig, GRPOTrainer

Recipe = RlhfRecipe | DpoRecipe
COMPLETE = "complete"  # file in a checkpoint that all ranks have finished writing
MAX_GRAD_NORM = 1.0


def main(argv: list[str] | None = None) -> None:
    """Runs the program that the command line names."""
    program = load_config(RlhfProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        train(run, program)


def train(run: Run, program: RlhfProgram) -> None:
    """Trains the policy and writes it as a Hugging Face folder with its facts."""
    recipe = program.recipe
    prompts = read_prompts(program.prompts)
    check_languages(prompts, recipe.rewards)
    training_prompts, held_out_prompts = hold_out(prompts, recipe.heldout)

    synthesizer = Synthesizer.open(program.serving_model, device=str(run.device))
    lm = policy_lm(synthesizer)
    with (
        open_engine(run, program.engine_program(), lm) as engine,
        closing(RewardExecutor.open(recipe, synthesizer, run.rank)) as rewards,
    ):
        worker = RolloutWorker(
            synthesizer, engine, rewards, recipe.sampling.complete(), recipe.seed
        )
        evaluation = HeldOutEvaluation(
            run,
            worker,
            held_out_prompts,
            samples=recipe.heldout.samples,
            every=recipe.heldout.every * recipe.iterations,
        )
        rollouts = TrainingRollouts(run, recipe, worker, evaluation, training_prompts)
        checkpoint = newest_checkpoint(run.checkpoint_dir)
        first = resume(run, recipe, checkpoint)
        callback = RunCallback(run, recipe, lambda _: engine.metrics(), first)
        torch.manual_seed(recipe.seed)  # of the adapters' random weights
        trainer = GRPOTrainer(
            model=lm.model,
            reward_funcs=[combined],
            args=grpo_config(recipe, run),
            train_dataset=prompt_dataset(len(training_prompts), recipe),
            processing_class=lm.tokenizer,
            rollout_func=rollouts.generate,
            callbacks=[callback],
            peft_config=adapter_config(recipe, lm.model),
        )
        optimize(run, trainer, callback, checkpoint)
        steps = restore(run, recipe, trainer) if callback.collapsed else recipe.steps
        evaluate_last(run, evaluation, steps * recipe.iterations)
    if run.is_main:
        if isinstance(trainer.model, PeftModel):
            lm.model = trainer.model.merge_and_unload()
        tokens = trainer.state.num_input_tokens_seen
        export(run, program.name, lm, synthesizer.card, steps, steps * recipe.iterations, tokens)


def policy_lm(synthesizer: Synthesizer) -> SpeechLM:
    """Returns the model of a synthesizer, which is the policy."""
    assert isinstance(synthesizer.engine, TransformersEngine)
    return synthesizer.engine.lm


def prompt_dataset(prompts: int, recipe: RlhfRecipe) -> Dataset:
    """Returns the prompts of all steps in order, as rows ``{"prompt": index}``."""
    order = prompt_order(prompts, recipe.steps * recipe.prompts_per_step, recipe.seed)
    return Dataset.from_dict({"prompt": [str(index) for index in order]})


def prompt_order(prompts: int, count: int, seed: int) -> NDArray[np.int64]:
    """Returns ``count`` prompt indices, shape (count,): one permutation after the other."""
    epochs = -(-count // prompts)
    orders = [np.random.default_rng([seed, epoch]).permutation(prompts) for epoch in range(epochs)]
    return np.concatenate(orders)[:count]


def grpo_config(recipe: RlhfRecipe, run: Run) -> GRPOConfig:
    """Returns the recipe as TRL's configuration.

    Raises ValueError if the completions of a step do not divide into the ranks.
    """
    completions = recipe.prompts_per_step * recipe.generations
    local, rest = divmod(completions, run.world_size)
    if rest:
        raise ValueError(
            f"prompts_per_step x generations = {completions} completions do not divide into "
            f"{run.world_size} processes: change one of them"
        )
    return GRPOConfig(
        **trainer_arguments(recipe, run, local),
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        num_generations=recipe.generations,
        num_iterations=recipe.iterations,
        max_completion_length=recipe.sampling.max_tokens + 1,
        max_steps=recipe.steps * recipe.iterations,
        temperature=recipe.sampling.temperature,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        epsilon=recipe.clip,
        epsilon_high=recipe.upper_clip,
        loss_type=recipe.loss,
        scale_rewards=recipe.scale_rewards,
        shuffle_dataset=False,
        logging_first_step=False,
    )


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


class TrainingRollouts:
    """Generates and scores the completions that TRL asks for, on one rank."""

    def __init__(
        self,
        run: Run,
        recipe: RlhfRecipe,
        worker: RolloutWorker,
        evaluation: HeldOutEvaluation,
        prompts: Sequence[RolloutPrompt],
    ) -> None:
        self.run, self.worker, self.evaluation, self.prompts = run, worker, evaluation, prompts
        self.kept = recipe.keep_audio
        self.audio_every = recipe.audio_every * recipe.iterations

    def generate(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's ``rollout_func``.

        Args:
            prompts: prompt indices, each repeated for its generations.
            trainer: TRL's trainer.

        Returns token ids of prompts and completions, log-probabilities of the completions' tokens,
        and ``rollout_records``, which TRL passes to :func:`combined`; a list entry for each prompt.
        """
        update = trainer.state.global_step
        if self.evaluation.due(update):
            self.evaluation.measure(update)
        chosen = [self.prompts[int(index)] for index in prompts]
        rollouts = self.worker.run(chosen, update, first_index=self.run.rank * len(prompts))
        if self.run.is_main and self.kept and update % self.audio_every == 0:
            folder = self.run.result_dir / FOLDER
            comment = self.worker.synthesizer.provenance
            save_completions(folder, update, rollouts, self.kept, comment)
        return {
            "prompt_ids": [r.request.prompt.tolist() for r in rollouts],
            "completion_ids": [r.completion.token_ids.tolist() for r in rollouts],
            "logprobs": [r.completion.logprobs.tolist() for r in rollouts],
            "rollout_records": [rollout_record(r) for r in rollouts],
        }


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


def evaluate_last(run: Run, evaluation: HeldOutEvaluation, updates: int) -> None:
    """Evaluates the final policy, or ends the program if it was asked to stop.

    The last checkpoint is saved: after a restart only this evaluation is left.
    """
    try:
        evaluation.measure(updates)
    except RolloutsStopped:
        run.stopped()


if __name__ == "__main__":
    main()
