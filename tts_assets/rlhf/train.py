"""The GRPO program: ``torchrun --nproc-per-node N -m tts_assets.rlhf.train run.json``.

The algorithm (advantages, clipping, KL, loss variants) is TRL's ``GRPOTrainer``; the rollouts and
the rewards are ours. TRL's log-probabilities are over the whole vocabulary, the rollouts draw from
speech tokens only: the difference is the probability that the model gives to text after
``<|speech_start|>``, below 1e-4 once it is fine-tuned.

Order of prompts, seeds of completions and so all of the run follow from the recipe and its seed. A
restart goes on from the newest complete checkpoint and ends with the same weights. A run that loses
its engine for good saves what it has before it ends.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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

from tts_assets.program import Run, load_config
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe
from tts_assets.rlhf.engine_client import EngineError
from tts_assets.rlhf.engines import RolloutEngine, RolloutsStopped, open_engine
from tts_assets.rlhf.prompts import read_prompts
from tts_assets.rlhf.rewards import Panel
from tts_assets.rlhf.rollouts import Rollout, RolloutWorker, save_audio
from tts_assets.serving.synthesis import Synthesizer, TransformersEngine
from tts_assets.sft.metrics import truncate_metrics
from tts_assets.speechlm.model import SpeechLM

with warnings.catch_warnings():
    # TRL imports its own vLLM client, which knows vLLM up to 0.31; it is not used here.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
    from trl import GRPOConfig, GRPOTrainer

COMPLETE = "complete"  # marks a checkpoint that every rank has finished writing
REWARD_SHARE = 0.1  # the published reward is the mean over the last steps


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
        self.prompts = read_prompts(program.prompts)
        self.synthesizer, self.engine = synthesizer, engine
        self.lm = own_lm(synthesizer)
        panel = Panel(self.recipe.rewards, self.synthesizer)
        sampling, seed = self.recipe.sampling, self.recipe.seed
        self.worker = RolloutWorker(synthesizer, engine, panel, sampling, seed)

    def dataset(self) -> Dataset:
        """The prompts of every step in order, as rows ``{"prompt": index}``."""
        count = self.recipe.steps * self.recipe.prompts_per_step
        order = prompt_order(len(self.prompts), count, self.recipe.seed)
        return Dataset.from_dict({"prompt": [str(index) for index in order]})

    def rollout(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's ``rollout_func``: ``prompts`` are indices, each as often as it has generations."""
        step = trainer.state.global_step
        chosen = [self.prompts[int(index)] for index in prompts]
        rollouts = self.worker.run(chosen, step, first_place=self.run.rank * len(prompts))
        if self.run.is_main and self.due(step):
            folder = self.run.result_dir / "rollouts"
            save_audio(folder, step, rollouts[: self.recipe.keep_audio])
        return {
            "prompt_ids": [r.request.prompt.tolist() for r in rollouts],
            "completion_ids": [r.completion.token_ids.tolist() for r in rollouts],
            "logprobs": [r.completion.logprobs.tolist() for r in rollouts],
            "verdict": [_record(r) for r in rollouts],
        }

    def due(self, step: int) -> bool:
        """Whether the completions of this update are kept as audio."""
        return (step // self.recipe.iterations) % self.recipe.audio_every == 0

    def reward_functions(self) -> list[Any]:
        """One a reward, by its name in TRL's log; they hand over what the rollout found."""
        return [_reader(reward.kind) for reward in self.recipe.rewards]


def _record(rollout: Rollout) -> dict[str, Any]:
    return {
        "wer": rollout.verdict.wer,
        "ended": rollout.completion.ended,
        "seconds": len(rollout.spoken.wave) / rollout.spoken.rate,
        "rewards": rollout.verdict.rewards,
    }


def _reader(kind: str) -> Any:
    """A TRL reward function that reads the reward ``kind`` from the rollouts' verdicts."""

    def reward(verdict: list[dict[str, Any]], log_metric: Any, **_: Any) -> list[float]:
        if kind == next(iter(verdict[0]["rewards"])):  # once, whatever the number of rewards
            log_metric("wer", float(np.mean([min(1.0, v["wer"]) for v in verdict])))
            log_metric("ended", float(np.mean([v["ended"] for v in verdict])))
            log_metric("seconds", float(np.mean([v["seconds"] for v in verdict])))
        return [v["rewards"][kind] for v in verdict]

    reward.__name__ = kind
    return reward


def prompt_order(prompts: int, count: int, seed: int) -> NDArray[np.int64]:
    """``count`` prompt indices: all prompts in random order, then again in another."""
    epochs = -(-count // prompts)
    orders = [np.random.default_rng([seed, epoch]).permutation(prompts) for epoch in range(epochs)]
    return np.concatenate(orders)[:count]


class Watch(TrainerCallback):
    """Progress, metrics, stop requests and complete checkpoints of a TRL run."""

    def __init__(self, run: Run, recipe: RlhfRecipe, engine: RolloutEngine, first: int) -> None:
        self.run, self.recipe, self.engine = run, recipe, engine
        steps = range(first, recipe.steps)
        self.bar: Iterator[int] = iter(run.progress(steps, "rlhf", total=recipe.steps, start=first))
        self.stopped = False
        self.tokens = 0

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
            facts = self.engine.facts()
            self.run.metrics(state.global_step, {**values, **facts})
            self.tokens = int(values.get("num_tokens", 0))

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
        tokens = optimize(run, program, policy)
    if run.is_main:
        export(run, program, policy, tokens)


def optimize(run: Run, program: RlhfProgram, policy: Policy) -> int:
    """GRPO from the newest checkpoint to the last step; the tokens of all completions."""
    recipe = program.recipe
    newest = newest_checkpoint(run.checkpoint_dir)
    done = int(newest.name.partition("-")[2]) if newest else 0
    if done:
        run.note(f"resuming after update {done} of {recipe.steps * recipe.iterations}")
    if run.is_main:
        truncate_metrics(run.run_dir / "metrics.jsonl", done)
    watch = Watch(run, recipe, policy.engine, first=done // recipe.iterations)
    trainer = GRPOTrainer(
        model=policy.lm.model,
        reward_funcs=policy.reward_functions(),
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
    if watch.stopped:
        run.stopped()
    return watch.tokens


def save_now(trainer: GRPOTrainer, watch: Watch) -> None:
    """A checkpoint between two steps, of a run that cannot begin the next."""
    if trainer.state.global_step:
        trainer._save_checkpoint(trainer.model, trial=None)
        watch.on_save(trainer.args, trainer.state, trainer.control)


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
        loss_type=recipe.loss,
        scale_rewards=recipe.scale_rewards,
        reward_weights=[reward.weight for reward in recipe.rewards],
        shuffle_dataset=False,
        save_steps=recipe.save_every * recipe.iterations,
        save_total_limit=2,
        logging_steps=recipe.iterations,
        logging_first_step=False,
        disable_tqdm=True,
        report_to="none",
        dataloader_num_workers=0,
        seed=recipe.seed,
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that all ranks finished."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def export(run: Run, program: RlhfProgram, policy: Policy, tokens: int) -> None:
    """Write the trained policy as a checkpoint folder, and declare its facts."""
    card = policy.synthesizer.card
    lm = policy.lm
    lm.model.eval()
    lm.model.config.eos_token_id = lm.vocabulary.speech_end  # TRL had put the tokenizer's here
    lm.save(run.result_dir, card.sampling)
    metrics = run.run_dir / "metrics.jsonl"
    shutil.copyfile(metrics, run.result_dir / metrics.name)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = records[-max(1, round(REWARD_SHARE * len(records))) :]
    run.finish(
        {
            "stage": "rlhf",
            "recipe": program.name,
            "steps": program.recipe.steps,
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
