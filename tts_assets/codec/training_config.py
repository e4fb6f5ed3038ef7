"""What the configurations of codec and decoder training share, and the curves of both.

This module imports no torch, because Dagster's definitions import it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from tts_assets.core.artifacts import Handle
from tts_assets.core.config import Config, ConfigError
from tts_assets.core.metadata import Metadata, curves, image
from tts_assets.core.program import METRICS_FILE, read_metrics


class DiscriminatorSizes(NamedTuple):
    """FFT sizes of the discriminators of STFTs, periods of the others (HiFi-GAN), channels."""

    sizes: tuple[int, ...]
    periods: tuple[int, ...]
    channels: int


REFERENCE = DiscriminatorSizes(
    (78, 126, 206, 334, 542, 876, 1418, 2296), (2, 3, 5, 7, 11), channels=32
)


class AdversarialConfig(Config):
    """The adversarial stage of a training, with discriminators of STFTs and of periods.

    For ``warmup`` steps only the discriminators learn; over the next ``warmup`` steps the weight of
    the adversarial losses rises to its value. The stage has its own learning rate schedule.
    """

    window_fraction: ClassVar[float]  # of a step's windows, which the discriminators score

    warmup: int = Field(200, ge=1)
    lr: float = Field(3e-4, gt=0, description="learning rate of the discriminators")
    adversarial_weight: float = Field(0.15, ge=0)
    feature_weight: float = Field(0.4, ge=0, description="of the feature matching loss")

    @property
    def first_fraction(self) -> float:
        """The fraction of all steps after which the stage begins."""
        return 0.0

    @property
    def discriminators(self) -> DiscriminatorSizes:
        """The discriminators: those of the reference trainer."""
        return REFERENCE

    def peak_lr(self, lr: float) -> float:
        """The peak learning rate of the generator in this stage; ``lr``: that of the recipe."""
        return lr


class CodecAdversarialConfig(AdversarialConfig):
    """The adversarial stage of a codec. It begins at the fraction ``start`` of all steps.

    By default the encoder is frozen in this stage. Training it against discriminators raises the
    WER more than the better decoder lowers it (``benchmarks/codec_training-2026-11-23.md``).
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"objective": "hinge", "overlap": 4, "share": 0.5}

    window_fraction: ClassVar[float] = 0.5

    start: float = Field(0.5, ge=0, lt=1, description="fraction of all steps")
    generator_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the generator in this stage; unset: lr"
    )
    sizes: tuple[int, ...] = Field((1024, 512, 256), min_length=1, description="FFT sizes")
    periods: tuple[int, ...] = Field((), description="of the period discriminators (HiFi-GAN)")
    channels: int = Field(16, gt=0)
    freeze_encoder: bool = Field(True, description="its codes no longer change in this stage")

    @property
    def first_fraction(self) -> float:
        return self.start

    @property
    def discriminators(self) -> DiscriminatorSizes:
        return DiscriminatorSizes(self.sizes, self.periods, self.channels)

    def peak_lr(self, lr: float) -> float:
        return self.generator_lr or lr

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.sizes) < 32 or max(self.sizes) > 16_384:
            raise ValueError(
                f"sizes {self.sizes} must lie between 32, below which the strided layers leave no "
                "frequencies, and 16384, a window of one second"
            )
        if min(self.periods, default=2) < 2:
            raise ValueError(f"periods {self.periods} must be 2 or more samples")
        return self


class DecoderAdversarialConfig(AdversarialConfig):
    """The adversarial stage of a decoder: all steps, with the discriminators of the reference."""

    removed_keys: ClassVar[Mapping[str, Any]] = {
        "objective": "least_squares",
        "overlap": 2,
        "share": 1.0,
        "start": 0.0,
        "generator_lr": None,
        "sizes": list(REFERENCE.sizes),
        "periods": list(REFERENCE.periods),
        "channels": REFERENCE.channels,
    }
    replaced_keys: ClassVar[Mapping[str, str]] = {
        "start": "the discriminators of a decoder learn from the first step; delete it",
        "generator_lr": "write lr in [codec.decoder]",
    }

    window_fraction: ClassVar[float] = 1.0

    lr: float = Field(1e-4, gt=0, description="learning rate of the discriminators")
    adversarial_weight: float = Field(1.0, ge=0)
    feature_weight: float = Field(1.0, ge=0, description="of the feature matching loss")


class TrainingRecipe(Config):
    """The keys that the trainings of a codec and of a decoder share.

    ``corpora`` gives each corpus a weight. A window is drawn from a corpus with a probability
    proportional to its hours times its weight.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"clip": 1.0, "ema": 0.999, "final_share": 0.05}

    min_lr_ratio: ClassVar[float] = 0.05  # last / peak learning rate

    corpora: dict[str, float] = Field(min_length=1)
    steps: int = Field(12_000, gt=0)
    batch_seconds: int = Field(16, gt=0, description="audio of one step, over all ranks")
    window_seconds: tuple[int, ...] = Field((1, 1, 2, 4), min_length=1)
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup: int = Field(100, ge=1, description="steps of linear warm-up")
    adversarial: AdversarialConfig | None = Field(
        None, description="false: spectral losses only, no discriminators"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    export_dtype: Literal["fp32", "fp16"] = "fp32"
    eval_every: int = Field(1000, gt=0)
    save_every: int = Field(500, gt=0)
    seed: int = Field(777, ge=0)

    @property
    def first_adversarial_step(self) -> int:
        """The first step of the adversarial stage; ``steps`` if there is no such stage."""
        config = self.adversarial
        return self.steps if config is None else round(config.first_fraction * self.steps)

    def check_ranks(self, ranks: int) -> None:
        """Raise :class:`ConfigError` unless every rank gets the same number of windows per step.

        The gradients of the ranks are averaged with equal weights.
        """
        if any(self.batch_seconds // length % ranks for length in self.window_seconds):
            even = ranks * math.lcm(*self.window_seconds)
            raise ConfigError(
                f"{ranks} processes cannot share the windows of {self.batch_seconds} s evenly: "
                f"set batch_seconds to a multiple of {even}, or start fewer"
            )

    @field_validator("adversarial", mode="before")
    @classmethod
    def _false_is_none(cls, value: object) -> object:
        """TOML has no null: ``adversarial = false`` leaves the stage out."""
        return None if value is False else value

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if max(self.window_seconds) > self.batch_seconds or min(self.window_seconds) < 1:
            raise ValueError(
                f"window_seconds {self.window_seconds} must lie between 1 and batch_seconds "
                f"{self.batch_seconds}"
            )
        bad = [name for name, weight in self.corpora.items() if weight <= 0]
        if bad:
            raise ValueError(f"corpora {bad} have no positive weight: leave them out")
        return self


def describe_training(handle: Handle) -> Metadata:
    """Metadata: curves of the training, and the usage of the codebook at its end."""
    records = read_metrics(handle.path / METRICS_FILE)
    panels = [{"mel": "training", "val_mel": "validation"}]
    if any("perplexity" in record for record in records):
        panels.append({"perplexity": "perplexity of the codes", "dead_codes": "dead codes"})
    plot = curves(records, panels, x_label="step")
    names = ("val_mel", "val_entropy", "perplexity", "codes_used", "dead_codes")
    last = {name: records[-1][name] for name in names if name in records[-1]}
    return {"curves": image("curves", plot), **last}
