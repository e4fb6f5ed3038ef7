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

import warnings
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from peft import PeftModel
from torch import Tensor

from tts_assets.core.program import (
    Run,
    load_config,
)
from tts_assets.rlhf.config import RlhfProgram, RlhfRecipe, VllmRollouts
from tts_assets.rlhf.prompts import RolloutPrompt, check_languages, read_prompts
from tts_assets.rlhf.reporting import (
    FOLDER,
    combined,
    export,
    rollout_record,
    save_completions,
)
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.rollouts import (
    HeldOutEvaluation,
    RolloutsStopped,
    RolloutWorker,
    hold_out,
    importance_ratio,
    open_engine,
)
from tts_assets.rlhf.trainer import (
    RunCallback,
    adapter_config,
    gather_weights,
    newest_checkpoint,
    optimize,
    policy_lm,
    prompt_order,
    restore,
    resume,
    sharded,
    trained_model,
    trainer_arguments,
)
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.model import SpeechLM

with warnings.catch_warnings():
    # TRL warns about the version of vLLM for a client of its own, which is not used here.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
    from trl import GRPOConfig, GRPOTrainer

KEPT_AUDIO = 8  # saved completions of each set


class PolicyTrainer(GRPOTrainer):
    """TRL's trainer, with importance sampling for completions of another engine.

    The advantage of a completion is multiplied by its ratio of :class:`TrainingRollouts`.
    """

    rollouts: TrainingRollouts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if (ratios := self.rollouts.ratios) is not None:
            ratios = ratios.to(output["advantages"])
            output["advantages"] = output["advantages"] * ratios
            known = self.accelerator.gather(ratios)
            self._metrics["train"]["importance_ratio"].append(known.mean().item())
            self._metrics["train"]["importance_masked"].append((known == 0).float().mean().item())
        return output


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
        rollouts = TrainingRollouts(run, recipe, worker, evaluation, training_prompts, lm)
        checkpoint = newest_checkpoint(run.checkpoint_dir)
        first = resume(run, recipe, checkpoint)
        callback = RunCallback(run, recipe, lambda _: engine.metrics(), first)
        torch.manual_seed(recipe.seed)  # of the adapters' random weights
        arguments = grpo_config(recipe, run)
        trainer = PolicyTrainer(
            model=trained_model(arguments, lm.model),
            reward_funcs=[combined],
            args=arguments,
            train_dataset=prompt_dataset(len(training_prompts), recipe),
            processing_class=lm.tokenizer,
            rollout_func=rollouts.generate,
            callbacks=[callback],
            peft_config=adapter_config(recipe, lm.model),
        )
        trainer.rollouts = rollouts
        optimize(run, trainer, callback, checkpoint)
        steps = restore(run, recipe, trainer) if callback.collapsed else recipe.steps
        gather_weights(trainer.model, lm.model)
        evaluate_last(run, evaluation, steps * recipe.iterations)
    if run.is_main:
        if isinstance(trainer.model, PeftModel):
            lm.model = trainer.model.merge_and_unload()
        tokens = trainer.state.num_input_tokens_seen
        export(run, program.name, lm, synthesizer.card, steps, steps * recipe.iterations, tokens)


def prompt_dataset(prompts: int, recipe: RlhfRecipe) -> Dataset:
    """Returns the prompts of all steps in order, as rows ``{"prompt": index}``."""
    order = prompt_order(prompts, recipe.steps * recipe.prompts_per_step, recipe.seed)
    return Dataset.from_dict({"prompt": [str(index) for index in order]})


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
        **sharded(recipe, run),
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


def inexact_engine(engine: VllmRollouts, policy: torch.dtype, device: torch.device) -> bool:
    """Whether vLLM's probabilities differ from those of a policy with weights of dtype ``policy``.

    In bfloat16 they do on both sides alike: kernels round differently (Qi et al., arXiv
    2510.26788). With float32 on both sides the ratios are 1 but for rounding, which may depend on
    vLLM's batches.
    """
    default = "float32" if device.type == "cpu" else "bfloat16"
    return not getattr(torch, engine.dtype or default) == policy == torch.float32


class TrainingRollouts:
    """Generates and scores the completions that TRL asks for, on one rank.

    An engine that is not in float32 samples from another distribution than the policy. ``ratios``
    are the probabilities of the completions by the policy divided by those by the engine, both at
    temperature 1 over the whole vocabulary: vLLM gives them before temperature, penalties and
    filters. TRL's are at the temperature T of the rollouts, where the logarithm is about 1 / T of
    it. They are 0 above :data:`IMPORTANCE_CAP`, as in TRL's ``sequence_mask``.
    """

    def __init__(
        self,
        run: Run,
        recipe: RlhfRecipe,
        worker: RolloutWorker,
        evaluation: HeldOutEvaluation,
        prompts: Sequence[RolloutPrompt],
        lm: SpeechLM,
    ) -> None:
        self.run, self.worker, self.evaluation, self.prompts = run, worker, evaluation, prompts
        self.lm = lm
        self.corrects = isinstance(recipe.engine, VllmRollouts) and inexact_engine(
            recipe.engine, lm.model.dtype, run.device
        )
        self.ratios: Tensor | None = None  # of the last completions, policy to engine, (B,)
        self.kept = KEPT_AUDIO
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
        gather_weights(trainer.model, self.lm.model)
        if self.evaluation.due(update):
            self.evaluation.measure(update)
        chosen = [self.prompts[int(index)] for index in prompts]
        rollouts = self.worker.run(chosen, update, first_index=self.run.rank * len(prompts))
        if self.corrects:
            pairs = ((r.request, r.completion) for r in rollouts)
            self.ratios = torch.stack([importance_ratio(self.lm, *pair) for pair in pairs])
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
