"""The training loop that codecs and decoders share: spectral losses, then discriminators.

``train.py`` (a whole codec) and ``train_decoder.py`` define what is generated and by which losses.
This module has the learning rate schedule, the adversarial stage, the moving average of the
weights, and the statistics of the codes. ``windows.py`` has the data.
"""

from __future__ import annotations

import copy
import math
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from tts_assets.codec.losses import CodeUsage, Discriminators
from tts_assets.codec.training_config import AdversarialConfig, TrainingRecipe
from tts_assets.codec.windows import TrainingAudio, WindowLoader
from tts_assets.core.program import METRICS_FILE, Run
from tts_assets.core.training import StepLoop, step_seed

GPU_WORKERS = 2  # processes of a rank that decode audio ahead of the step
BETAS = (0.8, 0.98)  # of AdamW; short averages, as usual where discriminators move the target
GRADIENT_CLIP = 1.0  # norm of the generator's gradient
EMA_DECAY = 0.999  # of the averaged weights, which are validated and published
# The name of the discriminators in checkpoints and in metrics.jsonl. It cannot change: files of
# earlier runs have it.
DISCRIMINATORS_KEY = "judges"


@dataclass(frozen=True)
class Generated:
    """The output of the generator in one step.

    ``waves`` and ``targets`` are (windows, samples), ``codes`` are the codes between them.
    ``loss`` is the sum of all losses that need no discriminator; ``report`` has their metrics.
    ``unpaired`` are further generated windows, which have no target: the discriminators see them.
    """

    waves: Tensor
    targets: Tensor
    codes: Tensor
    loss: Tensor
    report: dict[str, float]
    unpaired: Tensor | None = None


class GeneratorLoop(StepLoop):
    """One rank's part of the training of a generator of waveforms.

    A subclass implements :meth:`generate` and :meth:`validate`, and calls :meth:`prepare`.
    """

    recipe: TrainingRecipe
    discriminator_class: type[Discriminators] = Discriminators
    model: nn.Module
    average: Any  # the moving average of the model: it is validated and published

    def __init__(self, run: Run, recipe: TrainingRecipe, audio: TrainingAudio) -> None:
        super().__init__(run, recipe)
        recipe.check_ranks(run.world_size)
        self.audio = audio
        self.windows = self.loader_of(audio)

    def loader_of(self, audio: TrainingAudio) -> WindowLoader:
        """The windows of this rank, in the order of the steps."""
        run = self.run
        # The cores of a CPU are busy with the step itself, of which decoding is 5 %.
        workers = GPU_WORKERS if run.device.type == "cuda" else 0
        return WindowLoader(audio, self.recipe.steps, run.rank, run.world_size, workers=workers)

    @abstractmethod
    def generate(self, step: int) -> Generated:
        """This rank's windows of step ``step``, with gradients."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Metrics of the averaged model on held-out clips."""

    def windows_of(self, step: int) -> Tensor:
        """This rank's recorded windows of ``step``, (windows, samples).

        Afterwards the random numbers, for example of dropout, are those of the step. A data loader
        that is opened draws one, so the seed is set after it.
        """
        windows = self.windows.at(step)
        torch.manual_seed(step_seed(self.recipe.seed, step, self.run.rank))
        return windows

    def begin_adversarial(self) -> None:
        """Called before the first step of the adversarial stage; does nothing by default."""

    def prepare(
        self,
        model: nn.Module,
        identity: Mapping[str, Any],
        codebook_size: int,
        head: nn.Module | None = None,
    ) -> None:
        """Set up all that a checkpoint holds, then load the newest checkpoint of the run folder.

        ``identity`` is everything that determines the result. ``head`` is trained with the model
        and not published. Raises ValueError if the checkpoint belongs to another identity.
        """
        self.model = model
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.usage = CodeUsage(codebook_size).to(self.run.device)
        self.optimizers = {"generator": _adam([model, head or nn.Identity()], self.recipe.lr)}
        self.modules: dict[str, nn.Module] = {
            "model": model,
            "average": self.average,
            "usage": self.usage,
        }
        if head is not None:
            self.modules["head"] = head
        self.discriminators: Discriminators | None = None
        config = self.recipe.adversarial
        if config is not None:
            torch.manual_seed(self.recipe.seed)
            discriminators = self.discriminator_class(config.discriminators)
            self.discriminators = discriminators.to(self.run.device)
            self.modules[DISCRIMINATORS_KEY] = self.discriminators
            self.optimizers[DISCRIMINATORS_KEY] = _adam([self.discriminators], config.lr)
        self.resume(identity)
        if not self.run.is_main:
            self.usage.counts.zero_()  # rank 0 holds the counts of all ranks
        if self.discriminators is not None:
            self.parallel_discriminators = self.parallel(self.discriminators)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, wrapped so that its gradients are averaged over the ranks."""
        return DistributedDataParallel(module) if self.run.world_size > 1 else module

    def held_out(self) -> dict[str, float]:
        """:meth:`validate`, and the usage of the codes since the last call."""
        metrics = self.validate() | self.usage.figures(self.run.world_size)
        if self.step < self.recipe.steps:  # the last counts become facts of the result
            self.usage.counts.zero_()
        return metrics

    def train_step(self, step: int) -> dict[str, float]:
        """Update the generator and, in the adversarial stage, the discriminators."""
        if step == self.recipe.first_adversarial_step:
            self.begin_adversarial()
        lr = self.set_learning_rates(step)
        made = self.generate(step)
        self.usage.add(made.codes)
        loss, report = made.loss, {**made.report, "lr": lr}
        weight, config = self.adversarial_weight(step), self.recipe.adversarial
        if weight is not None and config is not None:
            loss = loss + self._adversarial_losses(config, weight, made, report)
        loss.backward()
        report |= {"loss": float(loss.detach()), "gradient_norm": self.update_generator(step)}
        return {name: round(value, 6) for name, value in report.items()}

    def _adversarial_losses(
        self, config: AdversarialConfig, weight: float, made: Generated, report: dict[str, float]
    ) -> Tensor | float:
        """Update the discriminators; return the generator's adversarial and feature losses.

        Adds their metrics to ``report``. ``weight`` is that of the stage, from 0 to 1.
        """
        count = math.ceil(config.window_fraction * len(made.waves))
        targets, waves = made.targets[:count], made.waves[:count]
        if made.unpaired is not None:
            further = math.ceil(config.window_fraction * len(made.unpaired))
            waves = torch.cat([waves, made.unpaired[:further]])
        report[DISCRIMINATORS_KEY] = self.train_discriminators(targets, waves.detach())
        if not weight:
            return 0.0
        adversarial, features = self.discriminate(targets, waves)
        report["adversarial"] = float(adversarial.detach())
        report["features"] = float(features.detach())
        return weight * (config.adversarial_weight * adversarial + config.feature_weight * features)

    def set_learning_rates(self, step: int) -> float:
        """Set and return the generator's learning rate.

        Each stage has a linear warm-up and then a cosine from its peak to ``min_lr_ratio`` of it.
        """
        recipe, config = self.recipe, self.recipe.adversarial
        first, last, peak = 0, recipe.first_adversarial_step, recipe.lr
        if config is not None and step >= recipe.first_adversarial_step:
            first, last = recipe.first_adversarial_step, recipe.steps
            peak = config.peak_lr(recipe.lr)
        ratio = recipe.min_lr_ratio
        cosine = 0.5 * (1 + math.cos(math.pi * (step - first) / (last - first)))
        factor = (ratio + (1 - ratio) * cosine) * min(1.0, (step - first + 1) / recipe.warmup)
        for group in self.optimizers["generator"].param_groups:
            group["lr"] = peak * factor
        return peak * factor

    def update_generator(self, step: int) -> float:
        """Clip the gradients, step, and update the average; return the norm before clipping.

        Raises FloatingPointError if the gradient is not finite, before it reaches the weights and
        the next checkpoint.
        """
        trained = self.optimizers["generator"].param_groups[0]["params"]
        norm = torch.nn.utils.clip_grad_norm_(trained, GRADIENT_CLIP)
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient of step {step + 1} is not finite: lower lr")
        self.optimizers["generator"].step()
        self.optimizers["generator"].zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for average, parameter in pairs:
                if parameter.requires_grad:
                    average.lerp_(parameter, 1 - decay)
        return float(norm)

    def adversarial_weight(self, step: int) -> float | None:
        """The weight of the adversarial losses in step ``step``.

        None before the adversarial stage, 0 while only the discriminators learn, then up to 1.
        """
        config = self.recipe.adversarial
        if config is None:
            return None
        since = step - self.recipe.first_adversarial_step
        if since < 0:
            return None
        stage = self.recipe.steps - self.recipe.first_adversarial_step
        # A stage shorter than the configured warm-up still reaches weight 1 after half of it.
        warmup = min(config.warmup, max(1, stage // 4))
        return min(1.0, max(0.0, since / warmup - 1))

    def train_discriminators(self, targets: Tensor, waves: Tensor) -> float:
        """Take one step of the discriminators and return their loss.

        ``targets`` are recordings, ``waves`` generated audio, both (windows, samples). More windows
        can be generated than recorded. Raises FloatingPointError if the loss is not finite.
        """
        with self.autocast():
            # One pass over both: DDP allows one forward pass for each backward pass.
            scored = self.parallel_discriminators(torch.cat([targets, waves]))
            real = [score[: len(targets)] for score, _ in scored]
            generated = [score[len(targets) :] for score, _ in scored]
            loss = self.discriminator_class.loss(real, generated)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                "the loss of the discriminators is not finite: lower adversarial.lr"
            )
        loss.backward()
        self.optimizers[DISCRIMINATORS_KEY].step()
        self.optimizers[DISCRIMINATORS_KEY].zero_grad(set_to_none=True)
        return value

    def discriminate(self, targets: Tensor, waves: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's adversarial and feature matching losses of ``waves``, two scalars.

        The first windows are those of ``targets``; further ones have no features to match.
        """
        assert self.discriminators is not None
        self.discriminators.requires_grad_(False)
        with self.autocast():
            with torch.no_grad():
                real = self.discriminators(targets)
            losses = self.discriminators.generator_losses(real, self.discriminators(waves))
        self.discriminators.requires_grad_(True)
        return losses

    def autocast(self) -> torch.autocast:
        """bfloat16 if the recipe asks for it, else nothing."""
        bf16 = self.recipe.precision == "bf16"
        return torch.autocast(self.run.device.type, torch.bfloat16, enabled=bf16)

    def copy_metrics(self) -> None:
        """Copy ``metrics.jsonl`` into ``result/`` (rank 0)."""
        shutil.copyfile(self.run.run_dir / METRICS_FILE, self.run.result_dir / METRICS_FILE)

    def save(self) -> None:
        """Write a checkpoint; rank 0 first collects the code counts of all ranks."""
        self.usage.gather(self.run.world_size, self.run.is_main)
        super().save()


def _adam(modules: Sequence[nn.Module], lr: float) -> AdamW:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)
