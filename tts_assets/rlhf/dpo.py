"""The DPO program: ``torchrun --nproc-per-node N -m tts_assets.rlhf.dpo run.json``.

DPO is Rafailov et al. 2023, arXiv 2305.18290. TRL's ``DPOTrainer`` has the algorithm: the loss, and
the reference model, which is the serving model that the run starts from. This project makes the
token ids: prompts in the format of the base, as for synthesis, and the codes of both completions,
with the end token where the model had ended. TRL neither tokenizes nor truncates.

The log-probabilities are over the whole vocabulary, as in GRPO (``train.py``).

The order of the pairs follows from the recipe's seed. A restart resumes from the newest complete
checkpoint and ends with the same weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset  # type: ignore[import-untyped]
from peft import PeftModel
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from tts_assets.audio_models.wer import normalize_for_match
from tts_assets.core.accounting import HashSplit, is_validation
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config
from tts_assets.rlhf.alarms import CollapseMonitor
from tts_assets.rlhf.dpo_config import (
    Answer,
    DpoProgram,
    DpoRecipe,
    PreferencePair,
    read_pairs,
)
from tts_assets.rlhf.prompts import RolloutPrompt
from tts_assets.rlhf.reporting import (
    FOLDER,
    MARGIN,
    SAMPLE_ALARMS,
    export,
    rollout_record,
    save_completions,
    step_metrics,
    training_records,
)
from tts_assets.rlhf.reward_executor import RewardExecutor, ThreadRunner
from tts_assets.rlhf.rollouts import (
    HELD_OUT_SALT,
    HELD_OUT_STEP,
    SUFFIX,
    PolicyEngine,
    RolloutWorker,
)
from tts_assets.rlhf.trainer import (
    RunCallback,
    adapter_config,
    newest_checkpoint,
    optimize,
    policy_lm,
    prompt_order,
    restore,
    resume,
    trainer_arguments,
)
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speechlm.vocabulary import SpeechVocabulary

HELD_OUT = 0.1  # part of the texts whose pairs are held out
SAMPLES = 8  # held-out texts that the policy synthesizes at an evaluation
SCHEDULE, WARMUP = "cosine", 0.1  # of the learning rate, as in Tunstall et al. 2023, Zephyr
# Metrics of TRL under the names of this project; they are means over the held-out pairs.
HELD_OUT_METRICS = {
    f"eval_{MARGIN}": f"margin{SUFFIX}",
    "eval_rewards/accuracies": f"accuracy{SUFFIX}",
    "eval_loss": f"loss{SUFFIX}",
}


def main(argv: list[str] | None = None) -> None:
    """Runs the program that the command line names."""
    program = load_config(DpoProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        train(run, program)


def train(run: Run, program: DpoProgram) -> None:
    """Trains the policy and writes it as a Hugging Face folder with its facts."""
    recipe = program.recipe
    synthesizer = Synthesizer.open(program.serving_model, device=str(run.device))
    lm = policy_lm(synthesizer)
    data = PairData.build(read_pairs(program.preferences), synthesizer, run)
    rows = training_rows(data.training, recipe)
    checkpoint = newest_checkpoint(run.checkpoint_dir)
    with closing(RewardExecutor((), ThreadRunner((), 1))) as no_rewards:
        engine, sampling = PolicyEngine(lm), synthesizer.card.sampling
        worker = RolloutWorker(synthesizer, engine, no_rewards, sampling, recipe.seed)
        callback = DpoCallback(run, recipe, worker, data, resume(run, recipe, checkpoint))
        torch.manual_seed(recipe.seed)  # of the adapters' random weights
        trainer = PairTrainer(
            model=lm.model,
            args=dpo_config(recipe, run, first_start=checkpoint is None),
            train_dataset=rows,
            eval_dataset=data.held_out,
            processing_class=lm.tokenizer,
            callbacks=[callback],
            peft_config=adapter_config(recipe, lm.model),
        )
        optimize(run, trainer, callback, checkpoint)
    steps = restore(run, recipe, trainer) if callback.collapsed else recipe.steps
    if run.is_main:
        if isinstance(trainer.model, PeftModel):
            lm.model = trainer.model.merge_and_unload()
        tokens = tokens_of(rows.select(range(steps * recipe.pairs_per_step)))
        card = synthesizer.card
        export(run, program.name, lm, card, steps, steps, tokens, stage="dpo", metric=MARGIN)


@dataclass(frozen=True)
class PairData:
    """Token ids of all pairs, and the texts that the policy synthesizes at evaluations.

    The columns of both datasets are ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``.
    """

    training: Dataset
    held_out: Dataset
    texts: list[RolloutPrompt]

    @classmethod
    def build(cls, pairs: Sequence[PreferencePair], synthesizer: Synthesizer, run: Run) -> PairData:
        """Splits the pairs by text and converts them.

        Pairs that are longer than the context of the model are left out and counted. Raises
        :class:`ConfigError` if no pair is left for training.
        """
        ids = [(pair, token_ids(pair, synthesizer)) for pair in pairs]
        positions = synthesizer.positions or 0
        fitting = [(pair, row) for pair, row in ids if longest(row) <= positions]
        if left_out := len(ids) - len(fitting):
            run.note(f"{left_out} of {len(ids)} pairs are longer than {positions} tokens: left out")
        held_out = held_out_texts([text_of(pair) for pair, _ in fitting])
        parts: tuple[list[dict[str, list[int]]], ...] = ([], [])
        texts: dict[str, RolloutPrompt] = {}
        for pair, row in fitting:
            parts[text_of(pair) in held_out].append(row)
            if text_of(pair) in held_out and not pair.description:
                prompt = RolloutPrompt(text=pair.text, language=pair.language, voice=pair.voice)
                texts.setdefault(text_of(pair), prompt)
        if not all(parts):
            raise ConfigError(
                f"{len(fitting)} pairs that fit into {positions} tokens have too few texts: DPO "
                "needs two texts or more, of which one is held out. Give more preferences"
            )
        training, evaluated = (Dataset.from_list(part) for part in parts)
        return cls(training, evaluated, list(texts.values())[:SAMPLES])


def token_ids(pair: PreferencePair, synthesizer: Synthesizer) -> dict[str, list[int]]:
    """Returns the row of a pair: its prompt for the model of ``synthesizer``, and both answers."""
    vocabulary = synthesizer.prompts.vocabulary
    return {
        "prompt_ids": synthesizer.request(pair.line(), 0).prompt.tolist(),
        "chosen_ids": completion_ids(pair.chosen, vocabulary),
        "rejected_ids": completion_ids(pair.rejected, vocabulary),
    }


def completion_ids(answer: Answer, vocabulary: SpeechVocabulary) -> list[int]:
    """Returns the token ids of an answer, with the end token if the model had ended."""
    ids: list[int] = vocabulary.ids(np.asarray(answer.codes, dtype=np.int64)).tolist()
    return [*ids, vocabulary.speech_end] if answer.ended else ids


def longest(row: Mapping[str, list[int]]) -> int:
    """Returns the number of tokens of the longer one of a pair, with its prompt."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def text_of(pair: PreferencePair) -> str:
    """Returns the language and the normalized words: equal for pairs of the same text."""
    return f"{pair.language}:{normalize_for_match(pair.text, pair.language)}"


def held_out_texts(texts: Sequence[str]) -> set[str]:
    """Returns the texts whose pairs are held out: a tenth, chosen by a hash, and at least one."""
    split = HashSplit(fraction=HELD_OUT, salt=HELD_OUT_SALT)
    chosen = {text for text in texts if is_validation(text, split)}
    ordered = sorted(set(texts), key=lambda one: hashlib.blake2b(one.encode()).digest())
    return chosen or set(ordered[:1])


def training_rows(pairs: Dataset, recipe: DpoRecipe) -> Dataset:
    """Returns the pairs of all steps in order: one permutation of all pairs after the other."""
    order = prompt_order(len(pairs), recipe.steps * recipe.pairs_per_step, recipe.seed)
    return pairs.select(order)


def tokens_of(rows: Dataset) -> int:
    """Returns the number of tokens of both sequences of all rows."""
    return sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in rows
    )


def dpo_config(recipe: DpoRecipe, run: Run, first_start: bool) -> DPOConfig:
    """Returns the recipe as TRL's configuration.

    ``first_start``: no checkpoint exists, so that the base itself is evaluated. Raises
    :class:`ConfigError` if the pairs of a step do not divide into the ranks.
    """
    local, rest = divmod(recipe.pairs_per_step, run.world_size)
    if rest:
        raise ConfigError(
            f"pairs_per_step = {recipe.pairs_per_step} does not divide into {run.world_size} "
            "processes: change one of them"
        )
    shared = trainer_arguments(recipe, run, local)
    return DPOConfig(
        **shared,
        gradient_checkpointing=False,
        per_device_eval_batch_size=shared["per_device_train_batch_size"],
        max_steps=recipe.steps,
        max_length=None,  # the pairs fit; TRL would cut their ends off
        lr_scheduler_type=SCHEDULE,
        warmup_steps=round(WARMUP * recipe.steps),
        loss_type=[recipe.loss],
        train_sampling_strategy="sequential",  # training_rows has the order
        eval_strategy="steps",
        eval_steps=recipe.save_every,
        eval_on_start=first_start,
    )


class PairTrainer(DPOTrainer):
    """TRL's trainer on token ids instead of texts."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Returns the dataset unchanged: TRL would tokenize texts here."""
        return dataset


class DpoCallback(RunCallback):
    """Connects TRL's DPO trainer to the run; at evaluations the policy synthesizes samples."""

    metric = MARGIN

    def __init__(
        self, run: Run, recipe: DpoRecipe, worker: RolloutWorker, data: PairData, first: int
    ) -> None:
        """``first``: the number of steps before this start."""
        super().__init__(run, recipe, self.chosen_change, first)
        self.worker, self.texts, self.beta = worker, data.texts, recipe.beta
        self.tokens = sum(map(len, data.training["chosen_ids"])) / len(data.training)
        self.evaluated = training_records(run.run_dir, f"margin{SUFFIX}")
        self.samples = CollapseMonitor(SAMPLE_ALARMS, self.evaluated, run.note)

    def chosen_change(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns how much more probable the preferred completions are than by the base.

        It is in nats, divided by the mean number of their tokens.
        """
        return {"chosen_change": round(values["rewards/chosen"] / self.beta / self.tokens, 6)}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Asks for an evaluation after the last step, too; stops if the run is asked to."""
        super().on_step_end(args, state, control)
        if state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Writes the metrics of a step; TRL counts tokens since the last start only."""
        known = {name: value for name, value in (logs or {}).items() if name != "num_tokens"}
        super().on_log(args, state, control, known)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Logs the metrics of the held-out pairs, and those of samples, which are saved."""
        step = state.global_step
        if step in {one["step"] for one in self.evaluated}:
            return
        raised: list[dict[str, float]] = [{}]
        if self.run.is_main:
            found = metrics or {}
            values = {name: round(found[key], 6) for key, name in HELD_OUT_METRICS.items()}
            values |= self.synthesize(step)
            raised = [self.samples.update(step, values)]
            self.run.metrics(step, {**values, **raised[0]})
        if dist.is_initialized():
            dist.broadcast_object_list(raised)
        self.stop_if(raised[0], control)

    def synthesize(self, step: int) -> dict[str, float]:
        """Synthesizes and saves held-out texts with the policy. Returns their statistics."""
        if not self.texts:
            return {}
        rollouts = self.worker.run(self.texts, HELD_OUT_STEP, 0)
        comment = self.worker.synthesizer.provenance
        folder = self.run.result_dir / FOLDER
        save_completions(folder, step, rollouts, len(rollouts), comment)
        return step_metrics([rollout_record(one) for one in rollouts])


if __name__ == "__main__":
    main()
