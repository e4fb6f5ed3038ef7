"""The GRPO program: ``torchrun --nproc-per-node N -m tts_assets.rlhf.train run.json``.

The algorithm (advantages, clipping, KL, loss variants) is TRL's ``GRPOTrainer``; the rollouts and
the rewards are ours. TRL's log-probabilities are over the whole vocabulary, the rollouts draw from
speech tokens only: the difference is the probability that the model gives to text after
``<|speech_start|>``, below 1e-4 once it is fine-tuned.

Order of prompts, seeds of completions and so all of the run follow from the recipe and its seed. A
restart goes on from the newest complete checkpoint and ends with the same weights. A run that loses
its engine for good saves what it has before it ends.

What watches a TRL run: progress, metrics, stop requests, complete checkpoints, alarms.

The policy of a GRPO run: what it is asked to say, what it says, and what is kept of that.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from datasets import Dataset  # type: ignore[import-untyped]
from numpy.typing import NDArray
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tts_assets.core.program import Run, load_config, publish_metrics, truncate_metrics
from tts_assets.rlhf.alarms import CollapseMonitor
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe
from tts_assets.rlhf.engine_client import EngineError
from tts_assets.rlhf.engines import RolloutEngine, RolloutsStopped, open_engine
from tts_assets.rlhf.listening import FOLDER, save_audio, spread, write_listening
from tts_assets.rlhf.metrics import combined, record_of, training_records
from tts_assets.rlhf.prompts import read_prompts, refuse_unheard
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rewards import RewardError
from tts_assets.rlhf.rollouts import HeldOut, Rollout, RolloutWorker, hold_out
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine
from tts_assets.speechlm.model import SpeechLM

if TYPE_CHECKING:
    from trl import GRPOTrainer

COMPLETE = "complete"  # marks a checkpoint that every rank has finished writing


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raise :class:`FloatingPointError` where an update has spoilt the weights: TRL logs it before
    it saves them."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values.get(name, 0.0)):
            raise FloatingPointError(
                f"the {name} of update {step} is {values[name]}: lower the recipe's learning_rate"
            )


class RunCallback(TrainerCallback):
    """Progress, metrics, stop requests and complete checkpoints of a TRL run."""

    def __init__(self, run: Run, recipe: RlhfRecipe, engine: RolloutEngine, first: int) -> None:
        self.run, self.recipe, self.engine = run, recipe, engine
        steps = range(first, recipe.steps)
        self.bar: Iterator[int] = iter(run.progress(steps, "rlhf", total=recipe.steps, start=first))
        self.stopped = self.collapsed = False
        self.bell = CollapseMonitor(recipe.alarms, training_records(run.run_dir), run.note)

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


def own_lm(synthesizer: Synthesizer) -> SpeechLM:
    """The model that is trained: that of the synthesizer."""
    assert isinstance(synthesizer.engine, TransformersEngine)
    return synthesizer.engine.lm


class Policy:
    """What TRL calls: completions and rewards for the prompts of this process."""

    def __init__(
        self, run: Run, program: RlhfProgram, synthesizer: Synthesizer, engine: RolloutEngine
    ) -> None:
        self.run, self.recipe = run, program.recipe
        found = read_prompts(program.prompts)
        refuse_unheard(found, self.recipe.rewards)
        self.prompts, held_out = hold_out(found, self.recipe.heldout)
        self.synthesizer, self.engine = synthesizer, engine
        self.lm = own_lm(synthesizer)
        self.panel = RewardExecutor.open(self.recipe, synthesizer, run.rank)
        sampling, seed = self.recipe.sampling, self.recipe.seed
        self.worker = RolloutWorker(synthesizer, engine, self.panel, sampling, seed)
        self.held_out = HeldOut(run, self.recipe, self.worker, held_out)

    def dataset(self) -> Dataset:
        """The prompts of every step in order, as rows ``{"prompt": index}``."""
        count = self.recipe.steps * self.recipe.prompts_per_step
        order = prompt_order(len(self.prompts), count, self.recipe.seed)
        return Dataset.from_dict({"prompt": [str(index) for index in order]})

    def rollout(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's ``rollout_func``: ``prompts`` are indices, each as often as it has generations."""
        step = trainer.state.global_step
        if self.held_out.due(step):
            self.held_out.measure(step)
        chosen = [self.prompts[int(index)] for index in prompts]
        rollouts = self.worker.run(chosen, step, first_place=self.run.rank * len(prompts))
        if self.run.is_main and self.due(step):
            self.keep(step, rollouts)
        return {
            "prompt_ids": [r.request.prompt.tolist() for r in rollouts],
            "completion_ids": [r.completion.token_ids.tolist() for r in rollouts],
            "logprobs": [r.completion.logprobs.tolist() for r in rollouts],
            "verdict": [record_of(r) for r in rollouts],
        }

    def due(self, step: int) -> bool:
        """Whether the completions of this update are kept as audio."""
        every = self.recipe.audio_every
        return self.recipe.keep_audio > 0 and (step // self.recipe.iterations) % every == 0

    def keep(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Save some of the completions for listening."""
        kept = [rollouts[place] for place in spread(len(rollouts), self.recipe.keep_audio)]
        heard = [(one.spoken, one.verdict) for one in kept]
        save_audio(self.run.result_dir / FOLDER, step, heard, self.synthesizer.provenance)


def prompt_order(prompts: int, count: int, seed: int) -> NDArray[np.int64]:
    """``count`` prompt indices: all prompts in random order, then again in another."""
    epochs = -(-count // prompts)
    orders = [np.random.default_rng([seed, epoch]).permutation(prompts) for epoch in range(epochs)]
    return np.concatenate(orders)[:count]


with warnings.catch_warnings():
    # TRL imports its own vLLM client, which knows vLLM up to 0.31; it is not used here.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
    from trl import GRPOConfig, GRPOTrainer

CLOCK = frozenset(  # what TRL and the engine tell of how long it took, and of the engine's deaths
    {"step_time", "engine_push_seconds", "engine_rollout_seconds", "engine_lost"}
)
REWARD_SHARE = 0.1  # the published reward is the mean over the last steps


def main(argv: list[str] | None = None) -> None:
    program = load_config(RlhfProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        train(run, program)


def train(run: Run, program: RlhfProgram) -> None:
    """GRPO to the last step, then the Hugging Face folder and the facts."""
    synthesizer = Synthesizer.open(program.serving_model, device=str(run.device))
    with open_engine(run, program, own_lm(synthesizer)) as engine:
        policy = Policy(run, program, synthesizer, engine)
        with closing(policy.panel):
            tokens, steps = optimize(run, program, policy)
    if run.is_main:
        export(run, program, policy, tokens, steps)


def optimize(run: Run, program: RlhfProgram, policy: Policy) -> tuple[int, int]:
    """GRPO from the newest checkpoint on; the tokens of all completions, and the steps made."""
    recipe = program.recipe
    newest = newest_checkpoint(run.checkpoint_dir)
    done = int(newest.name.partition("-")[2]) if newest else 0
    if done:
        run.note(f"resuming after update {done} of {recipe.steps * recipe.iterations}")
    if run.is_main:
        truncate_metrics(run.run_dir / "metrics.jsonl", done)
    if dist.is_initialized():
        dist.barrier()  # every rank reads what is left
    watch = RunCallback(run, recipe, policy.engine, first=done // recipe.iterations)
    trainer = GRPOTrainer(
        model=policy.lm.model,
        reward_funcs=[combined],
        args=grpo_config(recipe, run),
        train_dataset=policy.dataset(),
        processing_class=policy.lm.tokenizer,
        rollout_func=policy.rollout,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has it all
    try:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except (EngineError, RolloutsStopped) as end:
        save_now(trainer, watch)
        if isinstance(end, EngineError):
            raise
        watch.stopped = True
    except RewardError:
        if run.world_size == 1:  # the other ranks are in the middle of a step
            save_now(trainer, watch)
        raise
    if watch.stopped:
        run.stopped()
    steps = last_good(run, recipe, policy) if watch.collapsed else recipe.steps
    try:
        policy.held_out.measure(steps * recipe.iterations)
    except RolloutsStopped:
        run.stopped()  # the last checkpoint is there: a restart has only this left to do
    return trainer.state.num_input_tokens_seen, steps


def save_now(trainer: GRPOTrainer, watch: RunCallback) -> None:
    """A checkpoint between two steps, of a run that cannot begin the next."""
    if trainer.state.global_step:
        trainer._save_checkpoint(trainer.model, trial=None)
        watch.on_save(trainer.args, trainer.state, trainer.control)


def last_good(run: Run, recipe: RlhfRecipe, policy: Policy) -> int:
    """Go back to the newest checkpoint before an alarm; the steps that it has made."""
    newest = newest_checkpoint(run.checkpoint_dir)
    if newest is None:
        raise RuntimeError(
            f"the policy collapsed before the first checkpoint, at step {recipe.save_every}: there "
            "is none to keep. Take a lower learning_rate, a KL (beta), or another reward beside"
        )
    good = type(policy.lm.model).from_pretrained(newest)
    policy.lm.model.load_state_dict(good.state_dict())
    steps = int(newest.name.partition("-")[2]) // recipe.iterations
    run.note(f"collapsed: the run ends with the weights of step {steps} of {recipe.steps}")
    return steps


def grpo_config(recipe: RlhfRecipe, run: Run) -> GRPOConfig:
    """The recipe in TRL's terms."""
    completions = recipe.prompts_per_step * recipe.generations
    local, rest = divmod(completions, run.world_size)
    if rest:
        raise ValueError(
            f"prompts_per_step x generations = {completions} completions do not divide into "
            f"{run.world_size} processes: change one of them"
        )
    micro = max(size for size in range(1, recipe.micro_batch + 1) if local % size == 0)
    on_gpu = run.device.type == "cuda"
    return GRPOConfig(
        output_dir=str(run.checkpoint_dir),
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=local // micro,
        num_generations=recipe.generations,
        num_iterations=recipe.iterations,
        max_completion_length=recipe.sampling.max_tokens + 1,
        max_steps=recipe.steps * recipe.iterations,
        temperature=recipe.sampling.temperature,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        beta=recipe.beta,
        epsilon=recipe.clip,
        epsilon_high=recipe.upper_clip,
        loss_type=recipe.loss,
        scale_rewards=recipe.scale_rewards,
        shuffle_dataset=False,
        save_steps=recipe.save_every * recipe.iterations,
        save_total_limit=2,
        logging_steps=recipe.iterations,
        logging_first_step=False,
        logging_nan_inf_filter=False,  # a loss that is not finite is to be seen: watch.py
        disable_tqdm=True,
        report_to="none",
        dataloader_num_workers=0,
        seed=recipe.seed,
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that all ranks finished."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def export(run: Run, program: RlhfProgram, policy: Policy, tokens: int, steps: int) -> None:
    """Write the trained policy as a checkpoint folder, and declare its facts."""
    card = policy.synthesizer.card
    lm = policy.lm
    lm.model.eval()
    lm.model.config.eos_token_id = lm.vocabulary.speech_end  # TRL had put the tokenizer's here
    lm.save(run.result_dir, card.sampling)
    publish_metrics(run.run_dir, run.result_dir, without=CLOCK)
    made = steps * program.recipe.iterations  # those after it, of a policy that collapsed, are not
    records = [record for record in training_records(run.run_dir) if record["step"] <= made]
    last = records[-max(1, round(REWARD_SHARE * len(records))) :]
    write_listening(run.result_dir, program.name)
    run.finish(
        {
            "stage": "rlhf",
            "recipe": program.name,
            "steps": steps,
            "tokens": tokens,
            "train_loss": mean_of(last, "loss"),
            "val_loss": None,
            "reward": mean_of(last, "reward"),
            "parameters": lm.parameters,
            "vocabulary": lm.vocabulary.digest,
            "codec": card.codec,
            "sample_rate": card.sample_rate,
            "token_rate": card.token_rate,
            "codebook_size": card.codebook_size,
        }
    )


def mean_of(records: Sequence[dict[str, float]], key: str) -> float:
    """Mean of what the steps reported under ``key``."""
    return float(np.mean([record[key] for record in records if key in record]))


if __name__ == "__main__":
    main()
