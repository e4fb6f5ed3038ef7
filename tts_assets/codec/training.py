"""The loop that trains a generator of waveforms, first by spectra, then against discriminators.

``train.py`` (a whole codec) and ``train_decoder.py`` say what is generated and by which losses;
what is here they share: schedule, adversarial stage, averaged weights, the codes' usage.
"""

from __future__ import annotations

import copy
import math
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from tts_assets.codec.config import TrainingRecipe
from tts_assets.codec.discriminators import Discriminators, discriminator_loss, generator_losses
from tts_assets.codec.quality import CodeUsage
from tts_assets.core.program import METRICS_FILE, Run
from tts_assets.core.training import StepLoop

BETAS = (0.8, 0.98)  # short memories, as usual where discriminators move the target


@dataclass(frozen=True)
class Generated:
    """What a step made: waveforms (windows, samples) and the true ones, the codes between, the
    losses that need no judges, and figures to report."""

    waves: Tensor
    targets: Tensor
    codes: Tensor
    loss: Tensor
    report: dict[str, float]


class TrainingLoop(StepLoop):
    """One rank's part of a run. A subclass builds :attr:`model` and calls :meth:`prepare`."""

    recipe: TrainingRecipe
    model: nn.Module
    average: Any  # a copy of the model that forgets slowly: it is validated and published

    def __init__(self, run: Run, recipe: TrainingRecipe) -> None:
        super().__init__(run, recipe)
        recipe.check_ranks(run.world_size)

    @abstractmethod
    def generate(self, step: int) -> Generated:
        """This rank's part of a step, with gradients."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures of the averaged model on held-out clips."""

    def prepare(self, model: nn.Module, identity: Mapping[str, Any], codebook_size: int) -> None:
        """Everything that a checkpoint holds, then the newest checkpoint of the run folder.
        ``identity``: all that decides the result; a folder of another one is refused."""
        self.model = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.usage = CodeUsage(codebook_size).to(self.run.device)
        self.optimizers = {"generator": _adam(model, self.recipe.lr)}
        self.modules: dict[str, nn.Module] = {
            "model": model,
            "average": self.average,
            "usage": self.usage,
        }
        self.judges: Discriminators | None = None
        if self.recipe.adversarial is not None:
            torch.manual_seed(self.recipe.seed)
            self.judges = Discriminators(self.recipe.adversarial).to(self.run.device)
            self.modules["judges"] = self.judges
            self.optimizers["judges"] = _adam(self.judges, self.recipe.adversarial.lr)
        self.resume(identity)
        if not self.run.is_main:
            self.usage.counts.zero_()  # rank 0 has the counts of all
        self.parallel_judges = self.parallel(self.judges) if self.judges is not None else None

    def begin_adversarial(self) -> None:
        """Before the first step of the stage."""

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the ranks."""
        return DistributedDataParallel(module) if self.run.world_size > 1 else module

    def held_out(self) -> dict[str, float]:
        """:meth:`validate`, and how the codes were used since it was last asked."""
        figures = self.validate() | self.usage.figures(self.run.world_size)
        if self.step < self.recipe.steps:  # the last counts are facts of the result
            self.usage.counts.zero_()
        return figures

    def train_step(self, step: int) -> dict[str, float]:
        """One step of the generator and, in the adversarial stage, one of the judges."""
        if step == self.recipe.first_judged:
            self.begin_adversarial()
        lr = self.set_learning_rates(step)
        made = self.generate(step)
        self.usage.add(made.codes)
        loss, report = made.loss, {**made.report, "lr": lr}
        weight, config = self.adversarial_weight(step), self.recipe.adversarial
        if weight is not None and config is not None:
            judged = math.ceil(config.share * len(made.waves))
            targets, waves = made.targets[:judged], made.waves[:judged]
            report["judges"] = self.train_judges(targets, waves.detach())
            if weight:
                adversarial, features = self.judge(targets, waves)
                push = config.adversarial_weight * adversarial + config.feature_weight * features
                loss = loss + weight * push
                report["adversarial"] = float(adversarial.detach())
                report["features"] = float(features.detach())
        loss.backward()
        report |= {"loss": float(loss.detach()), "gradient_norm": self.update_generator(step)}
        return {name: round(value, 6) for name, value in report.items()}

    def set_learning_rates(self, step: int) -> float:
        """In each stage a linear warm-up, then a cosine to ``final_share`` of its highest; returns
        the generator's learning rate."""
        recipe, config = self.recipe, self.recipe.adversarial
        first, last, highest = 0, recipe.first_judged, recipe.lr
        if config is not None and step >= recipe.first_judged:
            first, last = recipe.first_judged, recipe.steps
            highest = config.generator_lr or recipe.lr
        share = recipe.final_share
        cosine = 0.5 * (1 + math.cos(math.pi * (step - first) / (last - first)))
        factor = (share + (1 - share) * cosine) * min(1.0, (step - first + 1) / recipe.warmup)
        for group in self.optimizers["generator"].param_groups:
            group["lr"] = highest * factor
        return highest * factor

    def update_generator(self, step: int) -> float:
        """Clip, update, average; returns the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        if not math.isfinite(norm):  # before it reaches the weights, and the next checkpoint
            raise FloatingPointError(f"the gradient of step {step + 1} is not finite: lower lr")
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
        since = step - self.recipe.first_judged
        if since < 0:
            return None
        stage = self.recipe.steps - self.recipe.first_judged
        warmup = min(config.warmup, max(1, stage // 4))  # a short stage is judged, too
        return min(1.0, max(0.0, since / warmup - 1))

    def train_judges(self, waves: Tensor, made: Tensor) -> float:
        """One step of the discriminators. Returns their loss."""
        assert self.parallel_judges is not None and self.recipe.adversarial is not None
        with self.autocast():
            # One pass over both: DDP allows one forward for each backward.
            judged = self.parallel_judges(torch.cat([waves, made]))
            real = [score[: len(waves)] for score, _ in judged]
            false = [score[len(waves) :] for score, _ in judged]
            loss = discriminator_loss(real, false, self.recipe.adversarial.objective)
        found = float(loss.detach())
        if not math.isfinite(found):
            raise FloatingPointError("the judges' loss is not finite: lower adversarial.lr")
        loss.backward()
        self.optimizers["judges"].step()
        self.optimizers["judges"].zero_grad(set_to_none=True)
        return found

    def judge(self, waves: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """What the judges say of made audio: the adversarial and the feature loss."""
        assert self.judges is not None and self.recipe.adversarial is not None
        self.judges.requires_grad_(False)
        with self.autocast():
            with torch.no_grad():
                real = self.judges(waves)
            objective = self.recipe.adversarial.objective
            losses = generator_losses(real, self.judges(made), objective)
        self.judges.requires_grad_(True)
        return losses

    def autocast(self) -> torch.autocast:
        bf16 = self.recipe.precision == "bf16"
        return torch.autocast(self.run.device.type, torch.bfloat16, enabled=bf16)

    def copy_metrics(self) -> None:
        """The figures of the run beside its weights (rank 0)."""
        shutil.copyfile(self.run.run_dir / METRICS_FILE, self.run.result_dir / METRICS_FILE)

    def save(self) -> None:
        self.usage.gather(self.run.world_size, self.run.is_main)
        super().save()


def _adam(module: nn.Module, lr: float) -> AdamW:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)
