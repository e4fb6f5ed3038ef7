"""The SFT program: ``torchrun --nproc-per-node N -m tts_assets.sft.train run.json``.

Data-parallel (DDP) over any number of ranks. A global batch is composed first and then shared
out, and the loss is the sum over all of its targets divided by their number, so that the curve
does not depend on the number of ranks. The loss counts from ``<|speech_start|>`` on.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from tts_assets.artifacts import written_aside
from tts_assets.config import digest_of
from tts_assets.program import Run, load_config
from tts_assets.sft import checkpoint
from tts_assets.sft.config import SftProgram, SftRecipe
from tts_assets.sft.dataset import Pool, Sample, SampleStream, plan_epoch
from tts_assets.sft.metrics import read_metrics, truncate_metrics
from tts_assets.sft.optimizer import Optimizers, learning_rate
from tts_assets.sft.packing import Packed, first_fit, pack, split_over
from tts_assets.speechlm.attention import SEGMENTS
from tts_assets.speechlm.loss import summed_cross_entropy
from tts_assets.speechlm.model import SpeechLM, build, output_table
from tts_assets.speechlm.prompts import PromptFormat

BEST = "best.safetensors"
TRAIN_LOSS_SHARE = 0.05  # the published train_loss is the mean over the last steps


class SpeechLoss(nn.Module):
    """The model with its loss: a packed row in, the summed cross-entropy out."""

    def __init__(self, model: PreTrainedModel, bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.bf16 = bf16

    def forward(self, row: Packed) -> Tensor:
        """Sum over the row's targets, float32 scalar."""
        with torch.autocast(row.input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model.base_model(
                input_ids=row.input_ids,
                position_ids=row.position_ids,
                segments=row.segments,
                use_cache=False,
            )
        hidden = output.last_hidden_state[0][row.where]
        dtype = torch.bfloat16 if self.bf16 else hidden.dtype
        return summed_cross_entropy(hidden.to(dtype), output_table(self.model), row.targets)


class Trainer:
    """One rank's part of a run."""

    def __init__(self, run: Run, program: SftProgram) -> None:
        self.run, self.program, self.recipe = run, program, program.recipe
        self.lm = open_base(program)
        prepare(self.lm.model, self.recipe.dropout)
        self.loss = SpeechLoss(self.lm.model, uses_bf16(self.recipe, run.device)).to(run.device)
        self.optimizers = Optimizers(self.lm.model, self.recipe.optimizer)
        prompts = PromptFormat(self.lm.tokenizer, self.lm.vocabulary)
        folders = {name: program.arrays[name] for name in self.recipe.corpora}
        longest, tokens = self.recipe.max_seq_len, program.tokens
        self.train_pool = Pool(folders, "train", prompts, longest, tokens)
        self.val_pool = Pool(folders, "val", prompts, longest, tokens)
        self.resume()

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run folder, if there is one."""
        recipe = digest_of({"recipe": self.recipe, "arrays": self.program.codec})
        self.progress = checkpoint.load(
            self.run.checkpoint_dir, self.lm.model, self.optimizers, recipe
        )
        epoch, offset = self.progress.epoch, self.progress.offset
        rate = self.program.token_rate
        self.stream = SampleStream(self.train_pool, self.recipe, rate, epoch, offset)
        self.steps = self.recipe.steps or self.steps_of(self.recipe.epochs or 0)
        if self.run.is_main:
            truncate_metrics(self.run.run_dir / "metrics.jsonl", self.progress.step)
        if self.progress.step:
            self.run.note(f"resuming after step {self.progress.step} of {self.steps}")
        self.parallel: nn.Module = self.loss
        if self.run.world_size > 1:
            # No buckets of other dtypes, no unused parameters: the plain case of DDP.
            self.parallel = DistributedDataParallel(self.loss, gradient_as_bucket_view=True)

    def steps_of(self, epochs: float) -> int:
        """Optimizer steps in ``epochs`` epochs, from the tokens of the first."""
        first = plan_epoch(self.train_pool, self.recipe, self.program.token_rate, 0)
        tokens = sum(self.train_pool.length(sample.utterances) for sample in first)
        return max(1, round(epochs * tokens / self.recipe.batch_tokens))

    def train(self) -> None:
        """Train to the last step, validating and saving on the way."""
        first = self.progress.step
        steps = range(first, self.steps)
        for step in self.run.progress(steps, "sft", total=self.steps, start=first):
            self.train_step(step)
            done = step + 1
            if done % self.recipe.eval_every == 0 or done == self.steps:
                self.validate()
            stop = self.run.should_stop()
            if stop or done % self.recipe.save_every == 0 or done == self.steps:
                self.save()
            if stop and done < self.steps:
                self.run.stopped()

    def train_step(self, step: int) -> None:
        """One optimizer step on one global batch."""
        started = time.perf_counter()
        torch.manual_seed(_step_seed(self.recipe.seed, step, self.run.rank))
        batch = self.stream.batch()
        rows = list(self.rows(self.train_pool, batch, self.recipe.code_dropout))
        counts = self.reduce(sum(len(r.targets) for r in rows), sum(r.tokens for r in rows))
        targets, tokens = (int(count) for count in counts)
        (loss_sum,) = self.reduce(self.backward(rows, targets))
        self.check_finite(loss_sum, batch)
        lr = learning_rate(self.recipe.optimizer, step, self.steps)
        norm = self.optimizers.step(lr)
        self.advance(tokens, targets)
        seconds = time.perf_counter() - started
        hours = self.progress.speech_tokens / self.program.token_rate / 3600
        metrics = {
            "loss": round(loss_sum / targets, 6),
            "lr": lr,
            "gradient_norm": round(norm, 5),
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "audio_hours_seen": round(hours, 5),
        }
        self.run.metrics(step + 1, metrics)

    def backward(self, rows: list[Packed], targets: int) -> Tensor:
        """Gradients of the mean loss over all ranks' ``targets``; returns this rank's sum."""
        self.loss.train()
        total = torch.zeros((), device=self.run.device)
        for number, row in enumerate(rows):
            with self.without_sync(number + 1 < len(rows)):
                loss = self.parallel(row.to(self.run.device))
                # DDP averages over ranks; the sum over all of them is wanted.
                (loss * (self.run.world_size / targets)).backward()
            total += loss.detach()
        return total

    def advance(self, tokens: int, targets: int) -> None:
        """Count a finished step."""
        done = {
            "step": self.progress.step + 1,
            "epoch": self.stream.epoch,
            "offset": self.stream.offset,
            "tokens": self.progress.tokens + tokens,
            "speech_tokens": self.progress.speech_tokens + targets,
        }
        self.progress = self.progress.model_copy(update=done)

    def rows(self, pool: Pool, batch: list[Sample], code_dropout: float = 0.0) -> Iterator[Packed]:
        """This rank's share of a global batch, as packed rows."""

        def size(sample: Sample) -> int:
            return pool.length(sample.utterances)

        mine = split_over(batch, size, self.run.world_size)[self.run.rank]
        for group in first_fit(mine, size, self.recipe.micro_tokens):
            yield pack([pool.encode(sample, code_dropout, self.recipe.seed) for sample in group])
        if not mine:  # takes part in the exchange of gradients with zeros
            yield pack([pool.encode(batch[0])]).without_targets()

    def without_sync(self, active: bool) -> AbstractContextManager[object]:
        if active and isinstance(self.parallel, DistributedDataParallel):
            return self.parallel.no_sync()
        return nullcontext()

    def reduce(self, *values: float | Tensor) -> list[float]:
        """Sums over all ranks."""
        tensor = torch.tensor([float(v) for v in values], dtype=torch.float64)
        if self.run.world_size > 1:
            tensor = tensor.to(self.run.device)
            dist.all_reduce(tensor)
        return tensor.tolist()

    def check_finite(self, loss: float, batch: Sequence[Sample]) -> None:
        if math.isfinite(loss):
            return
        ids = [self.train_pool.identity(u) for sample in batch for u in sample.utterances]
        raise FloatingPointError(
            f"the loss of step {self.progress.step + 1} is {loss}; utterances of the batch: "
            f"{', '.join(ids)}. Lower the learning rate, or look at these utterances"
        )

    @torch.no_grad()
    def validate(self) -> None:
        """Loss over the validation utterances, one by one; keeps the weights if it is the best."""
        if not len(self.val_pool):
            return
        loss = self.validation_loss()
        self.run.metrics(self.progress.step, {"val_loss": round(loss, 6)})
        best = self.progress.best_loss
        if best is None or loss < best:
            self.progress = self.progress.model_copy(
                update={"best_loss": loss, "best_step": self.progress.step}
            )
            if self.run.is_main and self.recipe.export == "best":
                with written_aside(self.run.checkpoint_dir / BEST) as aside:
                    save_model(self.lm.model, str(aside))

    def validation_loss(self) -> float:
        """Mean over all targets of the validation utterances."""
        self.loss.eval()
        samples = [Sample((u,), 0, u) for u in range(len(self.val_pool))]
        total, targets = 0.0, 0
        for row in self.rows(self.val_pool, samples):
            total += float(self.loss(row.to(self.run.device)))
            targets += len(row.targets)
        loss_sum, count = self.reduce(total, targets)
        return loss_sum / count

    def save(self) -> None:
        """Write a checkpoint for a restart (rank 0 has all there is to save)."""
        if self.run.is_main:
            checkpoint.save(self.run.checkpoint_dir, self.lm.model, self.optimizers, self.progress)

    def export(self) -> None:
        """Write the Hugging Face folder and what goes with it to ``result/`` (rank 0)."""
        if not self.run.is_main:
            return
        if self.recipe.export == "best" and self.progress.best_loss is not None:
            load_model(self.lm.model, str(self.run.checkpoint_dir / BEST))
        folder = self.run.result_dir
        self.lm.save(folder)
        shutil.copy(self.run.run_dir / "metrics.jsonl", folder / "metrics.jsonl")
        write_set_aside(folder / "set_aside.jsonl", [self.train_pool, self.val_pool])
        self.run.finish(self.facts())

    def facts(self) -> dict[str, object]:
        """The facts of a Checkpoint artifact."""
        records = read_metrics(self.run.run_dir / "metrics.jsonl")
        losses = [record["loss"] for record in records if "loss" in record]
        last = losses[-max(1, round(TRAIN_LOSS_SHARE * len(losses))) :]
        val_losses = {r["step"]: r["val_loss"] for r in records if "val_loss" in r}
        at = self.progress.best_step if self.recipe.export == "best" else self.progress.step
        return {
            "stage": "sft",
            "recipe": self.program.name,
            "steps": self.progress.step,
            "tokens": self.progress.tokens,
            "train_loss": round(sum(last) / len(last), 5),
            "val_loss": val_losses.get(at, last[-1]),
            "parameters": self.lm.parameters,
            "vocabulary": self.lm.vocabulary.digest,
            "codec": self.program.codec,
            "sample_rate": self.program.sample_rate,
            "token_rate": self.program.token_rate,
            "codebook_size": self.program.codebook_size,
        }


def open_base(program: SftProgram) -> SpeechLM:
    """The model that training starts from."""
    recipe = program.recipe
    if program.base_checkpoint is not None:
        return SpeechLM.load(program.base_checkpoint, program.codebook_size)
    return build(recipe.base, program.codebook_size, recipe.vocabulary, recipe.seed)


def uses_bf16(recipe: SftRecipe, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16; master weights stay float32.

    On 2 cores with AVX512_BF16 a step of the embedded recipe takes half as long; without such
    instructions it would take longer than in float32.
    """
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def prepare(model: PreTrainedModel, dropout: float) -> None:
    """Attention over packed rows, with ``dropout`` of its weights while training."""
    model.set_attn_implementation(SEGMENTS)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout  # type: ignore[assignment]


def write_set_aside(path: Path, pools: Sequence[Pool]) -> None:
    """A line for each utterance that was left out."""
    with path.open("w") as stream:
        for pool in pools:
            for identity, tokens in pool.dropped:
                record = {
                    "what": identity,
                    "reason": "longer than max_seq_len",
                    "detail": f"{tokens} tokens",
                }
                stream.write(json.dumps(record) + "\n")


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(digest_of([seed, step, rank])[:12], 16)


def main(argv: list[str] | None = None) -> None:
    program = load_config(SftProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        trainer = Trainer(run, program)
        trainer.train()
        trainer.export()


if __name__ == "__main__":
    main()
