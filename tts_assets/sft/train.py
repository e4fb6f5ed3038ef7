"""The SFT program: ``torchrun --nproc-per-node N -m tts_assets.sft.train run.json``.

Data-parallel over any number of ranks, under the recipe's strategy. A global batch is composed
first and then shared out, and the loss is the sum over all of its targets divided by their number,
so that the curve does not depend on the number of ranks. The loss of an utterance counts from
``<|speech_start|>`` on, that of a window of pretraining on every token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tts_assets.arrays.arrays import SPLITS
from tts_assets.core.config import digest_of
from tts_assets.core.program import Run, load_config, truncate_metrics
from tts_assets.core.training import wait_for_all
from tts_assets.sft import machine
from tts_assets.sft.checkpoint import Checkpoints, SftProgress, export, facts
from tts_assets.sft.config import FORGOTTEN, SftProgram
from tts_assets.sft.dataset import DataError, SampleDataset, SampleStream, TrainingSample
from tts_assets.sft.listening import Listening
from tts_assets.sft.mixture import open_dataset, speech_of, tell_of_spelled_tags
from tts_assets.sft.model import (
    Flops,
    SpeechLoss,
    adapt_lora,
    check_lora,
    merge_lora,
    open_base,
    prepare,
    uses_bf16,
)
from tts_assets.sft.monitoring import ModelDiagnostics, StepMetrics, begin, check_watched, judge
from tts_assets.sft.optimizer import learning_rate
from tts_assets.sft.packing import Packed, RankSharding
from tts_assets.sft.strategies import open_strategy
from tts_assets.speechlm.prompts import PromptFormat

EXPLODED = 3.0  # times ln(vocabulary), the loss of one who knows nothing
NOTHING_GOOD = (
    "a source was forgotten at every validation, so that none is the best: the weights from before "
    "the first step are published. Lower optimizer.lr, raise the weight of the forgotten source, "
    "or raise guards.forgetting"
)


class SftTrainer:
    """One rank's part of a run."""

    def __init__(self, run: Run, program: SftProgram) -> None:
        self.run, self.program, self.recipe = run, program, program.recipe
        check_lora(self.recipe)
        self.lm = open_base(program)
        self.parameters = self.lm.parameters
        if self.recipe.lora is not None:
            adapt_lora(self.lm.model, self.recipe.lora, self.recipe.seed)
        self.flops = Flops(self.lm.model)
        prepare(
            self.lm.model,
            self.recipe.dropout,
            self.recipe.gradient_checkpointing,
            self.recipe.compile,
        )
        prompts = PromptFormat(self.lm.tokenizer, self.lm.vocabulary)
        self.train_pool, self.val_pool = (open_dataset(program, prompts, split) for split in SPLITS)
        corpora = {name: program.arrays[name] for name in self.recipe.corpora}
        tell_of_spelled_tags(run, corpora, self.lm.tokenizer)
        loss = SpeechLoss(self.lm.model, uses_bf16(self.recipe, run.device)).to(run.device)
        self.strategy = open_strategy(run, self.recipe, loss)
        self.health = ModelDiagnostics(run, self.strategy, loss, self.lm.vocabulary)
        self.share = RankSharding(run, self.recipe, self.strategy.lockstep)
        self.listening = Listening(run, program, self.lm, speech_of(self.val_pool))
        self.checkpoints = Checkpoints(run, self.recipe.checkpoints)
        what = self.recipe.identified().what()
        recipe = digest_of({"recipe": what, "arrays": program.codec})
        self.progress = SftProgress(recipe=recipe, vocabulary=self.lm.vocabulary.digest)
        self.stream = SampleStream(self.train_pool, self.recipe, program.token_rate)
        steps, epochs = self.recipe.steps, self.recipe.epochs
        self.steps = self.steps_of(epochs or 0) if steps is None else steps

    def steps_of(self, epochs: float) -> int:
        """Optimizer steps in ``epochs`` epochs, from the tokens of the first."""
        tokens = sum(self.train_pool.length(sample.items) for sample in self.stream.plan)
        return max(1, round(epochs * tokens / self.recipe.batch_tokens))

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run folder, if there is one."""
        self.progress = self.checkpoints.load(self.strategy, self.progress)
        if self.run.is_main:
            # Step 0 is the guards' look before training, which is repeated, too.
            truncate_metrics(self.run.run_dir / "metrics.jsonl", self.progress.step or -1)
        if self.progress.step:
            place = self.progress.epoch, self.progress.offset
            rate = self.program.token_rate
            self.stream = SampleStream(self.train_pool, self.recipe, rate, *place)
            self.run.note(f"resuming after step {self.progress.step} of {self.steps}")

    def train(self) -> None:
        """Train to the last step, validating and saving on the way; of no steps, measure."""
        if not self.steps:
            self.look()
            return
        first = self.progress.step
        if not first:
            self.look_before()
        steps = range(first, self.steps if not self.progress.guards.ended else first)
        for step in self.run.progress(steps, "sft", total=self.steps, start=first):
            done = step + 1
            validates = done % self.recipe.eval_every == 0 or done == self.steps
            if validates:
                self.health.remember()
            self.train_step(step)
            self.checkpoints.saver.check()
            if validates:
                self.validate()
            if self.listening.due(done, self.steps):
                self.listening.speak(self.strategy, done)
            stop = self.run.should_stop()
            ended = bool(self.progress.guards.ended)
            if stop or ended or done % self.recipe.save_every == 0 or done == self.steps:
                self.checkpoints.save(self.strategy, self.progress)
            if ended:
                return
            if stop and done < self.steps:
                self.settle()
                self.run.stopped()

    def train_step(self, step: int) -> None:
        """One optimizer step on one global batch."""
        torch.manual_seed(_step_seed(self.recipe.seed, step, self.run.rank))
        batch = self.stream.batch()
        rows = list(self.share.rows(self.train_pool, batch, self.recipe.code_dropout))
        meter = self.meter(self.train_pool, rows)
        losses = self.backward(rows, meter)
        self.check_sane("loss", losses["loss"], batch)
        lr = learning_rate(self.recipe.optimizer, step, self.steps) * self.progress.guards.rate
        norm = self.strategy.step(lr)
        self.check_sane("gradient norm", norm, batch)
        self.advance(meter)
        hours = self.progress.speech_tokens / self.program.token_rate / 3600
        lengths = [self.train_pool.length(sample.items) for sample in batch]
        metrics = {
            **{name: round(loss, 6) for name, loss in losses.items()},
            "lr": lr,
            "gradient_norm": round(norm, 5),
            "tokens": meter.tokens,
            **meter.speed(self.flops, lengths),
            "audio_hours_seen": round(hours, 5),
        }
        self.run.metrics(step + 1, metrics)

    def backward(self, rows: Sequence[Packed], meter: StepMetrics) -> dict[str, float]:
        """Gradients of the mean loss over all ranks' targets; returns the losses."""
        # Strategies average over ranks; the sum over all of them is wanted.
        scale = self.run.world_size / meter.targets
        for number, row in enumerate(rows, start=1):
            row = row.to(self.run.device, meter.text_scale)
            meter.add(row, self.strategy.backward(row, scale, last=number == len(rows)))
        return meter.losses()

    def meter(self, pool: SampleDataset, rows: Sequence[Packed]) -> StepMetrics:
        return StepMetrics(self.run, pool.sources, rows, self.recipe.text_loss_weight)

    def advance(self, meter: StepMetrics) -> None:
        """Count a finished step. Speech is what the first sources have, one a corpus."""
        spoken = sum(meter.counts[: len(self.recipe.corpora)])
        done = {
            "step": self.progress.step + 1,
            "epoch": self.stream.epoch,
            "offset": self.stream.offset,
            "tokens": self.progress.tokens + meter.tokens,
            "speech_tokens": self.progress.speech_tokens + spoken,
        }
        self.progress = self.progress.model_copy(update=done)

    def check_sane(self, what: str, value: float, batch: Sequence[TrainingSample]) -> None:
        """Stop before a step that would spoil the weights."""
        knows_nothing = math.log(self.lm.vocabulary.size) * (1 + self.recipe.text_loss_weight)
        limit = EXPLODED * knows_nothing if what == "loss" else math.inf
        if value < limit:  # NaN is not
            return
        ids = [self.train_pool.identity(item) for sample in batch for item in sample.items]
        raise FloatingPointError(
            f"the {what} of step {self.progress.step + 1} is {value}; the batch: "
            f"{', '.join(ids)}. Lower the learning rate, or look at these samples"
        )

    def check_finite(self, losses: Mapping[str, float]) -> None:
        """Stop before weights are taken for the best that are not: NaN compares with nothing."""
        if wrong := {name: loss for name, loss in losses.items() if not math.isfinite(loss)}:
            told = ", ".join(f"{name} is {loss}" for name, loss in wrong.items())
            raise FloatingPointError(
                f"after step {self.progress.step}: {told}. Lower the learning rate, or look at the "
                "validation samples"
            )

    def validate(self) -> None:
        """Losses over the validation samples; keeps the weights if they are the best."""
        if not len(self.val_pool):
            return
        losses = {f"val_{name}": loss for name, loss in self.validation_losses().items()}
        metrics = {**{k: round(v, 6) for k, v in losses.items()}, **self.health.report()}
        forgotten = self.guard(losses)
        self.run.metrics(self.progress.step, metrics | ({FORGOTTEN: 1.0} if forgotten else {}))
        self.check_finite(losses)
        if forgotten:
            return
        # Where there is one corpus, its loss is the whole.
        loss = losses.get(self.recipe.checkpoints.best, losses["val_loss"])
        if self.progress.best_loss is not None and loss >= self.progress.best_loss:
            return
        best = {"best_loss": loss, "best_step": self.progress.step}
        self.progress = self.progress.model_copy(update=best)
        if self.recipe.export == "best":
            weights = self.strategy.weights()
            if self.run.is_main:
                self.checkpoints.save_best(weights, self.progress.step)

    def look_before(self) -> None:
        """The losses before the first step, which the guards compare with; whether each source
        has validation samples."""
        found = {self.val_pool.source(item) for item in range(len(self.val_pool))}
        silent = [name for n, name in enumerate(self.val_pool.sources) if n not in found]
        check_watched(self.recipe.guards, self.recipe.checkpoints.best, silent)
        if silent:
            names = ", ".join(silent)
            self.run.note(f"no sample of {names} is in the validation split: no loss tells of them")
        if self.recipe.guards is None:
            return
        if not len(self.val_pool):
            raise DataError(
                "guards look at validation losses, and no sample is in the validation split: "
                "raise validation.fraction, or leave out guards"
            )
        self.progress = self.progress.model_copy(update={"guards": begin(self.look())})

    def look(self) -> dict[str, float]:
        """The validation losses of the base; none where there are no validation samples."""
        found = self.validation_losses() if len(self.val_pool) else {}
        losses = {f"val_{name}": loss for name, loss in found.items()}
        self.health.report()  # of this validation, and nobody asked
        self.run.metrics(0, {name: round(loss, 6) for name, loss in losses.items()})
        self.check_finite(losses)
        return losses

    def guard(self, losses: Mapping[str, float]) -> bool:
        """Let the recipe's guards look at a validation; whether a source was forgotten by then."""
        if self.recipe.guards is None:
            return False
        best = self.recipe.checkpoints.best
        found = judge(self.recipe.guards, self.progress.guards, losses, best)
        self.progress = self.progress.model_copy(update={"guards": found.state})
        if found.message:
            self.run.note(found.message)
        return found.forgotten

    def validation_losses(self) -> dict[str, float]:
        """Means over all targets of the validation split, one sample an item."""
        samples = [TrainingSample((u,), 0, u) for u in range(len(self.val_pool))]
        rows = list(self.share.rows(self.val_pool, samples))
        meter = self.meter(self.val_pool, rows)
        for row in rows:
            row = row.to(self.run.device, meter.text_scale)
            meter.add(row, self.strategy.evaluate(row))
        return meter.losses()

    def settle(self) -> None:
        """Until all that was saved is on disk. A rank that left early would take the others."""
        self.checkpoints.saver.wait()
        wait_for_all()

    def finish(self) -> None:
        """Publish the weights that the recipe asks for to ``result/``."""
        self.settle()
        best = start = False
        if self.recipe.export == "best":
            best = self.progress.best_loss is not None
            # Guarded runs have validations: without a best one, each of them forgot a source.
            start = not best and bool(self.progress.guards.first)
        weights = {} if best or start else self.strategy.weights()
        if not self.run.is_main:
            return
        if best:
            weights = self.checkpoints.load_best(self.progress.best_step)
        pools = [self.train_pool, self.val_pool]
        if start:
            self.run.note(NOTHING_GOOD)
            export(self.run, open_base(self.program), None, pools)
        elif self.recipe.lora is None:
            export(self.run, self.lm, weights, pools)
        else:
            base = open_base(self.program)
            export(self.run, merge_lora(base, self.recipe, weights), None, pools)
        self.listening.publish()
        self.run.finish(facts(self.run, self.program, self.lm, self.parameters, self.progress))


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(digest_of([seed, step, rank])[:12], 16)


def main(argv: list[str] | None = None) -> None:
    program = load_config(SftProgram, argv)
    with Run(program.run_dir) as run:
        machine.check(program.recipe, run.local_world_size)
        run.init_distributed()
        trainer = SftTrainer(run, program)
        trainer.resume()
        trainer.train()
        trainer.finish()


if __name__ == "__main__":
    main()
