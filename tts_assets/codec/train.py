"""Trains a codec: ``python -m tts_assets.codec.train run.json``, by hand or under torchrun.

Two stages in one schedule: first spectra alone; from ``adversarial.start`` on also against
discriminators, because spectra without a phase sound hoarse. The published weights are an
exponential moving average, which is also what validation measures.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from tts_assets.artifacts import CodecFacts, sha256_file, written_aside
from tts_assets.codec import checkpoint
from tts_assets.codec.config import CodecProgram, CodecRecipe
from tts_assets.codec.discriminator import Discriminators, discriminator_loss, generator_losses
from tts_assets.codec.losses import SpectralLoss, spread_loss
from tts_assets.codec.storage import WEIGHTS_FILE, facts_of, open_compact, save_compact
from tts_assets.codec.windows import TrainingAudio
from tts_assets.codec.xcodec2 import CompactXcodec2, build, calibrate
from tts_assets.config import digest_of
from tts_assets.program import Run, load_config

BETAS = (0.8, 0.98)  # short memories, as usual where discriminators move the target
VALIDATION_CLIPS = 16  # a validation of whole clips costs as much as some ten steps


class Reconstruction(nn.Module):
    """Waveforms in, waveforms out, and the latents between: what DDP wraps."""

    def __init__(self, model: CompactXcodec2, recipe: CodecRecipe) -> None:
        super().__init__()
        self.model = model
        self.frozen = recipe.freeze_encoder
        self.bf16 = recipe.precision == "bf16"

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples) to the same, float32, and latents (batch, codes, dimensions)."""
        device = waves.device.type
        # A frozen encoder gives the very codes of inference: no gradients, full precision.
        encoder_bf16 = self.bf16 and not self.frozen
        with (
            torch.autocast(device, torch.bfloat16, enabled=encoder_bf16),
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen),
        ):
            latents = self.model.latents(waves)
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            quantized, _ = self.model.quantizer.quantize(latents)
            made = self.model.waves(quantized)
        return made.float(), latents


class Trainer:
    """One rank's part of a run."""

    def __init__(self, run: Run, program: CodecProgram) -> None:
        self.run, self.program, self.recipe = run, program, program.recipe
        self.audio = TrainingAudio(program.samples, self.recipe, program.validation)
        self.model = self._new_model().moved(run.device)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.spectral = SpectralLoss().to(run.device)
        self.optimizers = {"generator": self._adam(self.model, self.recipe.lr)}
        self.modules: dict[str, nn.Module] = {"model": self.model, "average": self.average}
        self.judges: Discriminators | None = None
        if self.recipe.adversarial is not None:
            torch.manual_seed(self.recipe.seed)
            self.judges = Discriminators(self.recipe.adversarial).to(run.device)
            self.modules["judges"] = self.judges
            self.optimizers["judges"] = self._adam(self.judges, self.recipe.adversarial.lr)
        self._resume()
        self.parallel: nn.Module = Reconstruction(self.model, self.recipe)
        self.parallel_judges: nn.Module | None = self.judges
        if run.world_size > 1:
            self.parallel = DistributedDataParallel(self.parallel)
            if self.judges is not None:
                self.parallel_judges = DistributedDataParallel(self.judges)

    def _new_model(self) -> CompactXcodec2:
        if self.recipe.base is not None:
            model = open_compact(self.recipe.base)
        else:
            model = build(self.recipe.architecture, self.recipe.seed)
            calibrate(model, self.audio.calibration())
        frozen = [model.semantic_encoder]
        if self.recipe.freeze_encoder:
            frozen = model.encoder_parts()
        for module in frozen:
            module.requires_grad_(False)
        return model

    def _adam(self, module: nn.Module, lr: float) -> AdamW:
        parameters = [p for p in module.parameters() if p.requires_grad]
        return AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)

    def _resume(self) -> None:
        """Go on from the newest checkpoint of the run folder, if there is one."""
        data = [sample.id for sample in self.audio.train]
        recipe = digest_of({"recipe": self.recipe, "data": data})
        folder = self.run.checkpoint_dir
        progress = checkpoint.load(folder, recipe, self.modules, self.optimizers)
        self.identity, self.step = progress.recipe, progress.step
        if self.step:
            self.run.note(f"resuming after step {self.step} of {self.recipe.steps}")

    def train(self) -> None:
        """Train to the last step, validating and saving on the way."""
        steps, first = self.recipe.steps, self.step
        for step in self.run.progress(range(first, steps), "codec", total=steps, start=first):
            report = self.train_step(step)
            self.step = step + 1
            if self.step % self.recipe.eval_every == 0 or self.step == steps:
                report |= self.validate()
            self.run.metrics(self.step, report)
            stop = self.run.should_stop()
            if stop or self.step % self.recipe.save_every == 0 or self.step == steps:
                self.save()
            if stop and self.step < steps:
                self.run.stopped()

    def train_step(self, step: int) -> dict[str, float]:
        """One step of the generator and, in the adversarial stage, one of the judges."""
        scale = self.set_learning_rates(step)
        waves = self.audio.batch(step, self.run.rank, self.run.world_size).to(self.run.device)
        made, latents = self.parallel(waves)
        spectral, mel = self.spectral(made, waves)
        loss = spectral
        report = {"mel": float(mel), "lr": scale * self.recipe.lr}
        if not self.recipe.freeze_encoder:
            spread = spread_loss(latents)
            loss = loss + self.recipe.spread_weight * spread
            report["spread"] = float(spread.detach())
        weight = self.adversarial_weight(step)
        config = self.recipe.adversarial
        if weight is not None and config is not None:
            judged = math.ceil(config.share * len(waves))
            waves, made = waves[:judged], made[:judged]
            report["judges"] = self.train_judges(waves, made.detach())
        if weight and config is not None:
            adversarial, features = self.judge(waves, made)
            push = config.adversarial_weight * adversarial + config.feature_weight * features
            loss = loss + weight * push
            report |= {
                "adversarial": float(adversarial.detach()),
                "features": float(features.detach()),
            }
        loss.backward()
        report |= {"loss": float(loss.detach()), "gradient_norm": self.update_generator(step)}
        if not math.isfinite(report["loss"]):
            raise FloatingPointError(f"the loss of step {step + 1} is not finite: lower lr")
        return {name: round(value, 6) for name, value in report.items()}

    def set_learning_rates(self, step: int) -> float:
        """Linear warm-up, then a cosine to ``final_share``; returns the factor."""
        recipe = self.recipe
        share = recipe.final_share
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        factor = (share + (1 - share) * cosine) * min(1.0, (step + 1) / recipe.warmup)
        for group in self.optimizers["generator"].param_groups:
            group["lr"] = recipe.lr * factor
        return factor

    def update_generator(self, step: int) -> float:
        """Clip, update, average; returns the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizers["generator"].step()
        self.optimizers["generator"].zero_grad(set_to_none=True)
        decay = min(self.recipe.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for average, parameter in pairs:
                if parameter.requires_grad:
                    average.lerp_(parameter, 1 - decay)
        return float(norm)

    def adversarial_weight(self, step: int) -> float | None:
        """None before the adversarial stage, 0 while only the judges learn, then up to 1."""
        config = self.recipe.adversarial
        if config is None:
            return None
        since = step - round(config.start * self.recipe.steps)
        if since < 0:
            return None
        return min(1.0, max(0.0, since / config.warmup - 1))

    def train_judges(self, waves: Tensor, made: Tensor) -> float:
        """One step of the discriminators. Returns their loss."""
        assert self.parallel_judges is not None
        with self._autocast():
            # One pass over both: DDP allows one forward for each backward.
            judged = self.parallel_judges(torch.cat([waves, made]))
            real = [score[: len(waves)] for score, _ in judged]
            false = [score[len(waves) :] for score, _ in judged]
            loss = discriminator_loss(real, false)
        loss.backward()
        self.optimizers["judges"].step()
        self.optimizers["judges"].zero_grad(set_to_none=True)
        return float(loss.detach())

    def judge(self, waves: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """What the judges say of made audio: the adversarial and the feature loss."""
        assert self.judges is not None
        self.judges.requires_grad_(False)
        with self._autocast():
            with torch.no_grad():
                real = self.judges(waves)
            losses = generator_losses(real, self.judges(made))
        self.judges.requires_grad_(True)
        return losses

    def _autocast(self) -> torch.autocast:
        bf16 = self.recipe.precision == "bf16"
        return torch.autocast(self.run.device.type, torch.bfloat16, enabled=bf16)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Log-mel L1 of held-out clips and the entropy of their codes, in bits a code."""
        mels: list[Tensor] = []
        counts = torch.zeros(facts_of(self.model).codebook_size, dtype=torch.float64)
        for sample in self.audio.validation[:VALIDATION_CLIPS]:
            waves = self.audio.whole(sample).to(self.run.device)
            quantized, codes = self.average.quantizer.quantize(self.average.latents(waves))
            mels.append(self.spectral(self.average.waves(quantized), waves)[1])
            counts += codes.flatten().long().cpu().bincount(minlength=len(counts))
        if not mels:
            return {}
        shares = counts[counts > 0] / counts.sum()
        entropy = -(shares * shares.log2()).sum()
        return {"val_mel": float(torch.stack(mels).mean()), "val_entropy": float(entropy)}

    def save(self) -> None:
        """A checkpoint for a restart (rank 0 has all there is to save)."""
        if self.run.is_main:
            progress = checkpoint.Progress(step=self.step, recipe=self.identity)
            checkpoint.save(self.run.checkpoint_dir, progress, self.modules, self.optimizers)

    def export(self) -> CodecFacts:
        """Write the codec folder to ``result/`` (rank 0); returns its facts."""
        facts = facts_of(self.average)
        if self.run.is_main:
            folder = self.run.result_dir
            save_compact(self.average, folder, self.recipe.export_dtype)
            write_recipe(self.recipe, folder)
        return facts


def write_recipe(recipe: CodecRecipe, folder: Path) -> None:
    """``recipe.json``: how the weights were made. A base is named by the digest of its weights:
    a path would mean nothing elsewhere, and would make equal results differ."""
    values = recipe.model_dump(mode="json")
    if recipe.base is not None:
        values["base"] = sha256_file(recipe.base / WEIGHTS_FILE)
    with written_aside(folder / "recipe.json") as aside:
        aside.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def main(argv: list[str] | None = None) -> None:
    program = load_config(CodecProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        trainer = Trainer(run, program)
        trainer.train()
        facts = trainer.export()
        run.finish(facts.model_dump())


if __name__ == "__main__":
    main()
