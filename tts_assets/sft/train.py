"""The SFT program: ``torchrun --nproc-per-node N -m tts_assets.sft.train run.json``.

Data-parallel training over any number of ranks, with the strategy of the recipe. A global batch is
composed first and then distributed. The loss is the sum over all targets of the batch divided by
their number, so the loss curve does not depend on the number of ranks. Targets are the speech
tokens of an utterance and, in pretraining, all tokens of a window.

``--dry-run`` builds everything, runs the first batch forward and backward, writes ``dry_run.json``
into the run folder and prints it. It trains nothing and saves nothing. The asset writes its
``run.json`` to ``storage/.work/sft.<recipe>.all.<fingerprint>/`` when it is first launched; a copy
with another ``run_dir`` and recipe shows the needs of that recipe.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from tts_assets.arrays.arrays import SPLITS
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import digest_of
from tts_assets.core.program import (
    METRICS_FILE,
    Run,
    load_config,
    read_metrics,
    truncate_metrics,
)
from tts_assets.core.training import step_seed, wait_for_all
from tts_assets.sft.checkpoint import Checkpoints, SftProgress, export, facts
from tts_assets.sft.config import FORGOTTEN, SftProgram
from tts_assets.sft.epochs import (
    DataError,
    SampleDataset,
    SampleStream,
    TrainingSample,
    validation_samples,
)
from tts_assets.sft.inputs import check_machine
from tts_assets.sft.mixture import log_spelled_tags, open_dataset, utterances_of
from tts_assets.sft.model import (
    Flops,
    SpeechLoss,
    adapt_lora,
    check_lora,
    hold_in_four_bit,
    merge_lora,
    open_base,
    prepare,
    uses_bf16,
    write_adapter,
)
from tts_assets.sft.monitoring import (
    EXPLODED,
    ModelDiagnostics,
    StepMetrics,
    apply_guards,
    check_finite,
    check_loss,
    check_watched,
    initial_state,
)
from tts_assets.sft.optimizer import code_rows, learning_rate
from tts_assets.sft.packing import Batch, BatchLoader, Packed, RankRows, RankSharding
from tts_assets.sft.sampling import TextSampler
from tts_assets.sft.strategies import Strategy, open_strategy
from tts_assets.speechlm.config import ADAPTER
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptFormat

BASE_PUBLISHED = (
    "a source was forgotten at every validation, so that none is the best: the weights from before "
    "the first step are published. Lower optimizer.lr, raise the weight of the forgotten source, "
    "or raise guards.forgetting"
)


def main(argv: list[str] | None = None) -> None:
    """Train the recipe of the program file, or report the first batch with ``--dry-run``."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--dry-run", action="store_true")
    options, rest = flags.parse_known_args(argv)
    program = load_config(SftProgram, rest)
    with Run(program.run_dir) as run:
        check_machine(program.recipe, run.local_world_size)
        run.init_distributed()
        trainer = build_trainer(run, program)
        if options.dry_run:
            write_dry_run(run, trainer.dry_run())
            return
        trainer.resume()
        trainer.train()
        trainer.finish()


def build_trainer(run: Run, program: SftProgram) -> SftTrainer:
    """Build model, data, strategy and monitoring, in this order."""
    recipe, device = program.recipe, run.device

    check_lora(recipe)
    lm = open_base(program)
    parameters = lm.parameters
    if recipe.lora is not None:
        adapt_lora(lm.model, recipe.lora, recipe.seed)
    flops = Flops(lm.model)
    if recipe.lora is not None and recipe.lora.four_bit:
        hold_in_four_bit(lm.model, device, uses_bf16(recipe, device))
    prepare(lm.model, recipe.dropout, recipe.gradient_checkpointing, recipe.compile)

    prompts = PromptFormat(lm.tokenizer, lm.vocabulary)
    train_data, val_data = (open_dataset(program, prompts, split) for split in SPLITS)
    folders = {name: program.arrays[name] for name in recipe.corpora}
    log_spelled_tags(run.note, folders, lm.tokenizer)
    if advice := lm.vocabulary.format.advice(recipe.optimizer.lr):
        run.note(advice)
    stream = SampleStream(train_data, recipe, program.token_rate)

    loss = SpeechLoss(lm.model, uses_bf16(recipe, device)).to(device)
    shared = recipe.optimizer.share_codes
    codes = code_rows(program.codec_folder, lm.vocabulary.speech_ids) if shared else None
    strategy = open_strategy(recipe, loss, codes)
    sharding = RankSharding(
        run.rank,
        run.world_size,
        micro_tokens=recipe.micro_tokens,
        seed=recipe.seed,
        text=recipe.text_loss_weight > 0,
        lockstep=strategy.lockstep,
    )
    recipe_digest = digest_of({"recipe": recipe.identified().what(), "arrays": program.codec})
    return SftTrainer(
        run=run,
        program=program,
        lm=lm,
        parameters=parameters,
        flops=flops,
        train_data=train_data,
        val_data=val_data,
        loader=BatchLoader(stream, sharding, recipe.code_dropout),
        steps=stream.count_steps(),
        strategy=strategy,
        sharding=sharding,
        diagnostics=ModelDiagnostics(device, strategy, loss, lm.vocabulary),
        sampler=TextSampler(program, lm, utterances_of(val_data), run.result_dir, device),
        checkpoints=Checkpoints(run.checkpoint_dir, recipe.checkpoints, device, run.note),
        progress=SftProgress(recipe=recipe_digest, vocabulary=lm.vocabulary.digest),
    )


def write_dry_run(run: Run, numbers: dict[str, float]) -> None:
    """Write ``dry_run.json`` and print it (rank 0)."""
    if run.is_main:
        text = json.dumps(numbers, indent=2) + "\n"
        with atomic_write(run.run_dir / "dry_run.json") as aside:
            aside.write_text(text)
        print(text, end="", flush=True)


@dataclass
class SftTrainer:
    """One rank's part of a run. ``steps`` are all optimizer steps of the run."""

    run: Run
    program: SftProgram
    lm: SpeechLM
    parameters: int
    flops: Flops
    train_data: SampleDataset
    val_data: SampleDataset
    loader: BatchLoader
    steps: int
    strategy: Strategy
    sharding: RankSharding
    diagnostics: ModelDiagnostics
    sampler: TextSampler
    checkpoints: Checkpoints
    progress: SftProgress

    def __post_init__(self) -> None:
        self.recipe = self.program.recipe

    def resume(self) -> None:
        """Load the newest checkpoint of the run folder, if there is one."""
        self.progress = self.checkpoints.load(self.strategy, self.progress)
        if self.run.is_main:
            # The validation before training (step 0) is repeated as well.
            truncate_metrics(self.run.run_dir / METRICS_FILE, self.progress.step or -1)
        if self.progress.step:
            position = self.progress.epoch, self.progress.offset
            rate = self.program.token_rate
            stream = SampleStream(self.train_data, self.recipe, rate, *position)
            self.loader = BatchLoader(stream, self.sharding, self.recipe.code_dropout)
            self.run.note(f"resuming after step {self.progress.step} of {self.steps}")

    def train(self) -> None:
        """Train to the last step, with validations and saves on the way.

        Without steps it only validates the base. After a stop request it saves and ends the program
        with :data:`~tts_assets.core.program.STOPPED`.
        """
        if not self.steps:
            self.validate_base()
            return
        first = self.progress.step
        if not first:
            self.start_guards()
        steps = range(first, self.steps if not self.progress.guards.ended else first)
        for step in self.run.progress(steps, "sft", total=self.steps, start=first):
            done = step + 1
            validates = done % self.recipe.eval_every == 0 or done == self.steps
            if validates:
                self.diagnostics.remember()
            self.train_step(step)
            self.checkpoints.saver.check()
            if validates:
                self.validate()
            if self.sampler.due(done, self.steps):
                self.sampler.sample(self.strategy, done)
            stop = self.run.should_stop()
            ended = bool(self.progress.guards.ended)
            if stop or ended or done % self.recipe.save_every == 0 or done == self.steps:
                self.checkpoints.save(self.strategy, self.progress)
            if ended:
                return
            if stop and done < self.steps:
                self.wait_for_saves()
                self.run.stopped()

    def train_step(self, step: int) -> None:
        """One optimizer step on one global batch. Raises FloatingPointError before a bad step."""
        torch.manual_seed(step_seed(self.recipe.seed, step, self.run.rank))
        started = time.perf_counter()
        batch = self.loader.next()
        waited = time.perf_counter() - started
        metrics = self.step_metrics(self.train_data, batch.rows)
        losses = self.backward(batch.rows, metrics)
        self.check_step("loss", losses["loss"], batch.samples)
        lr = learning_rate(self.recipe.optimizer, step, self.steps) * self.progress.guards.rate
        norm = self.strategy.step(lr)
        self.check_step("gradient norm", norm, batch.samples)
        self.advance(metrics, batch)
        hours = self.progress.speech_tokens / self.program.token_rate / 3600
        lengths = [self.train_data.length(sample.items) for sample in batch.samples]
        values = {
            **{name: round(loss, 6) for name, loss in losses.items()},
            "lr": lr,
            "gradient_norm": round(norm, 5),
            "tokens": metrics.tokens,
            **metrics.speed(self.flops, lengths, time.perf_counter() - started),
            "data_seconds": round(waited, 4),
            "audio_hours_seen": round(hours, 5),
        }
        self.run.metrics(step + 1, values)

    def backward(self, rows: Sequence[Packed], metrics: StepMetrics) -> dict[str, float]:
        """Compute the gradients of the mean loss over all ranks' targets. Returns the losses."""
        # Strategies average over ranks, but the gradient is that of the sum over ranks.
        scale = self.run.world_size / metrics.targets
        for number, row in enumerate(rows, start=1):
            row = row.to(self.run.device, metrics.text_scale)
            metrics.add(row, self.strategy.backward(row, scale, last=number == len(rows)))
        return metrics.losses()

    def step_metrics(self, dataset: SampleDataset, rows: Sequence[Packed]) -> StepMetrics:
        """Empty metrics of a batch of this dataset."""
        weight = self.recipe.text_loss_weight
        return StepMetrics(self.run.device, dataset.sources, rows, weight)

    def advance(self, metrics: StepMetrics, batch: Batch) -> None:
        """Count a finished step. The first sources are the speech of the corpora."""
        speech = sum(metrics.counts[: len(self.recipe.corpora)])
        done = {
            "step": self.progress.step + 1,
            "epoch": batch.epoch,
            "offset": batch.offset,
            "tokens": self.progress.tokens + metrics.tokens,
            "speech_tokens": self.progress.speech_tokens + speech,
        }
        self.progress = self.progress.model_copy(update=done)

    def check_step(self, what: str, value: float, batch: Sequence[TrainingSample]) -> None:
        """Raise FloatingPointError before a step that would damage the weights."""
        chance = math.log(self.lm.vocabulary.size) * (1 + self.recipe.text_loss_weight)
        limit = EXPLODED * chance if what == "loss" else math.inf
        if value < limit:
            return
        names = [self.train_data.identity(item) for sample in batch for item in sample.items]
        check_loss(what, value, limit, self.progress.step + 1, names)

    def dry_run(self) -> dict[str, float]:
        """The numbers of the first batch, after its forward and backward pass."""
        started = time.perf_counter()
        batch, rows, *_ = self.loader.next()
        metrics = self.step_metrics(self.train_data, rows)
        losses = self.backward(rows, metrics)
        self.check_step("loss", losses["loss"], batch)
        lengths = [self.train_data.length(sample.items) for sample in batch]
        return {
            "parameters": self.parameters,
            "ranks": self.run.world_size,
            "steps": self.steps,
            "tokens_per_step": metrics.tokens,
            "samples_per_step": len(batch),
            "rows_of_rank_0": len(rows),
            "train_samples": len(self.train_data),
            "train_samples_dropped": len(self.train_data.dropped),
            "val_samples": len(self.val_data),
            "val_samples_dropped": len(self.val_data.dropped),
            **losses,
            **metrics.speed(self.flops, lengths, time.perf_counter() - started),
        }

    def validate(self) -> None:
        """Measure the validation losses, apply the guards, and save the weights if they are best.

        Raises FloatingPointError if a loss is not finite.
        """
        if not len(self.val_data):
            return
        losses = {f"val_{name}": loss for name, loss in self.validation_losses().items()}
        metrics = {**{k: round(v, 6) for k, v in losses.items()}, **self.diagnostics.report()}
        forgotten = self.guard(losses)
        self.run.metrics(self.progress.step, metrics | ({FORGOTTEN: 1.0} if forgotten else {}))
        check_finite(losses, self.progress.step)
        if forgotten:
            return
        # A recipe with one corpus has no loss by source: its val_loss is the same.
        loss = losses.get(self.recipe.checkpoints.best, losses["val_loss"])
        if self.progress.best_loss is not None and loss >= self.progress.best_loss:
            return
        best = {"best_loss": loss, "best_step": self.progress.step}
        self.progress = self.progress.model_copy(update=best)
        if self.recipe.export == "best":
            weights = self.strategy.weights()
            if self.run.is_main:
                self.checkpoints.save_best(weights, self.progress.step)

    def start_guards(self) -> None:
        """Validate the base for the guards, and log sources without validation samples.

        Raises :class:`ConfigError` or :class:`DataError` if a needed loss cannot be measured.
        """
        found = np.unique(self.val_data.item_sources())
        missing = [name for n, name in enumerate(self.val_data.sources) if n not in found]
        check_watched(self.recipe.guards, self.recipe.checkpoints.best, missing)
        if missing:
            names = ", ".join(missing)
            self.run.note(f"no sample of {names} is in the validation split: it has no loss there")
        if self.recipe.guards is None:
            return
        if not len(self.val_data):
            raise DataError(
                "guards need validation losses, and no sample is in the validation split: raise "
                "validation.fraction, or leave out guards"
            )
        state = initial_state(self.validate_base())
        self.progress = self.progress.model_copy(update={"guards": state})

    def validate_base(self) -> dict[str, float]:
        """The validation losses of the base, logged as step 0; none without validation samples."""
        found = self.validation_losses() if len(self.val_data) else {}
        losses = {f"val_{name}": loss for name, loss in found.items()}
        self.diagnostics.report()  # discards the diagnostics of this validation
        self.run.metrics(0, {name: round(loss, 6) for name, loss in losses.items()})
        check_finite(losses, self.progress.step)
        return losses

    def guard(self, losses: dict[str, float]) -> bool:
        """Apply the guards of the recipe to a validation. Returns whether a source is forgotten."""
        if self.recipe.guards is None:
            return False
        best = self.recipe.checkpoints.best
        result = apply_guards(self.recipe.guards, self.progress.guards, losses, best)
        self.progress = self.progress.model_copy(update={"guards": result.state})
        if result.message:
            self.run.note(result.message)
        return result.forgotten

    @cached_property
    def val_share(self) -> RankRows:
        """The part of the validation samples that this rank has in every validation."""
        samples = validation_samples(self.val_data, self.recipe.eval_samples, self.recipe.seed)
        if len(samples) < len(self.val_data):
            self.run.note(f"validations have {len(samples)} of {len(self.val_data)} samples")
        return self.sharding.share(self.val_data, samples)

    def validation_losses(self) -> dict[str, float]:
        """Mean losses over all targets of the validation samples."""
        rows = list(self.sharding.packed(self.val_data, self.val_share))
        metrics = self.step_metrics(self.val_data, rows)
        for row in rows:
            row = row.to(self.run.device, metrics.text_scale)
            metrics.add(row, self.strategy.evaluate(row))
        return metrics.losses()

    def wait_for_saves(self) -> None:
        """Wait until all ranks have written everything; torchrun ends all when one rank leaves."""
        self.checkpoints.saver.wait()
        wait_for_all()

    def finish(self) -> None:
        """Publish the weights that the recipe selects to ``result/``."""
        self.wait_for_saves()
        best = base_only = False
        if self.recipe.export == "best":
            best = self.progress.best_loss is not None
            # A run with guards has validations: without best weights all of them forgot a source.
            base_only = not best and bool(self.progress.guards.first)
        weights = {} if best or base_only else self.strategy.weights()
        if not self.run.is_main:
            return
        if best:
            weights = self.checkpoints.load_best(self.progress.best_step)
        lm, trained = self.lm, None
        if base_only:
            self.run.note(BASE_PUBLISHED)
            lm = open_base(self.program)
        elif self.recipe.lora is None:
            trained = weights
        else:
            base = open_base(self.program)
            if self.recipe.lora.adapter:
                write_adapter(self.run.result_dir / ADAPTER, base, self.recipe, weights)
            lm = merge_lora(base, self.recipe, weights)
        dropped = [*self.train_data.dropped, *self.val_data.dropped]
        export(self.run.run_dir, self.run.result_dir, lm, trained, dropped)
        self.sampler.publish()
        records = read_metrics(self.run.run_dir / METRICS_FILE)
        self.run.finish(facts(records, self.program, self.lm, self.parameters, self.progress))


if __name__ == "__main__":
    main()
