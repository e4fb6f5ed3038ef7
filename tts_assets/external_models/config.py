"""Configuration of external models (XTTS, VITS, Tortoise): their environment and recipes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.compute import Shape
from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.config import VoiceConsent

Family = Literal["xtts", "vits", "tortoise"]
SAMPLE_RATES: dict[str, int] = {"xtts": 22050, "vits": 22050, "tortoise": 22050}  # Hz, of training
CLONING: tuple[Family, ...] = ("xtts", "tortoise")  # models that imitate the voice of clips
LEARNING_RATES: dict[str, float] = {"xtts": 5e-6, "vits": 2e-4, "tortoise": 0.0}  # coqui's defaults
VOICE_CLIPS = 3  # clips that a cloning model imitates
SAVE_STEPS = 1000  # steps between two checkpoints
LOG_STEPS = 25  # steps between two lines of metrics
XTTS_MAX_SECONDS = 11.6  # coqui's limit of a training clip


class ExternalRecipe(Config):
    """``[external_models.recipes.<name>]``: one external model.

    Corpora have no weights here: coqui's trainer draws uniformly from one list of clips.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"longest": "max_seconds"}
    removed_keys: ClassVar[Mapping[str, Any]] = {
        "export": "last",
        "log_steps": LOG_STEPS,
        "save_steps": SAVE_STEPS,
        "voices": VOICE_CLIPS,
    }

    family: Family = Field(description="for 'speechlm', write an [sft] recipe")
    corpora: tuple[str, ...] = Field(min_length=1, description="filtered samples to train on")
    model: Path | None = Field(
        None, description="folder of coqui's published weights; unset: random weights, for tests"
    )
    epochs: int = Field(100, ge=1, description="ignored for tortoise, which coqui cannot train")
    batch_size: int = Field(16, ge=1)
    learning_rate: float | None = Field(None, gt=0, description="unset: coqui's default")
    sample_rate: int | None = Field(None, ge=8000, description="of vits, in Hz; unset: 22050")
    max_seconds: float = Field(
        XTTS_MAX_SECONDS, gt=0, description="longest training clip; xtts allows at most 11.6"
    )
    seed: int = 1
    config: dict[str, Any] = Field(
        default_factory=dict, description="keys of coqui's configuration, which override these"
    )

    @field_validator("family", mode="before")
    @classmethod
    def _refuse_speechlm(cls, family: Any) -> Any:
        if family == "speechlm":
            raise ValueError("speechlm is this project's own model: write it as [sft.<name>]")
        return family

    @property
    def rate(self) -> int:
        """Sample rate of the training clips in Hz."""
        return self.sample_rate or SAMPLE_RATES[self.family]

    def with_model(self, folder: Path) -> ExternalRecipe:
        """The recipe with the absolute path of its published weights."""
        return self.model_copy(update={"model": folder})

    @model_validator(mode="after")
    def _check_family(self) -> Self:
        if self.family != "vits" and self.sample_rate is not None:
            rate = SAMPLE_RATES[self.family]
            raise ValueError(f"{self.family} has {rate} Hz: leave sample_rate out")
        if self.family == "vits" and self.model is not None:
            raise ValueError("vits is trained from scratch: leave model out")
        if self.family == "xtts" and self.max_seconds > XTTS_MAX_SECONDS:
            raise ValueError(
                f"xtts accepts clips of at most {XTTS_MAX_SECONDS} s: set max_seconds accordingly"
            )
        return self


class ExternalModelsConfig(Config):
    """``[external_models]``: models of coqui-tts, and notes for the table of all models."""

    python: Path | None = Field(None, description="interpreter of an environment with coqui-tts")
    recipes: dict[str, ExternalRecipe] = Field(default_factory=dict)
    notes: dict[str, str] = Field(
        default_factory=dict, description="by recipe of any kind, for the table model_families"
    )

    @model_validator(mode="after")
    def _check_python(self) -> Self:
        if self.recipes and self.python is None:
            raise ValueError(
                "recipes need an environment with coqui-tts: set external_models.python to its "
                "interpreter, such as python = '/opt/coqui/bin/python' (docs/external_models.md)"
            )
        return self

    def check_recipes(self, others: Collection[str]) -> None:
        """Raise ValueError if SpeechLM recipes have a name of these, or a note has no recipe."""
        for name in set(self.recipes) & set(others):
            raise ValueError(
                f"{name!r} names a recipe of [external_models] and another one, and both would "
                f"have report/{name}; rename one, for example external_models.recipes.{name}_vits"
            )
        known = {*self.recipes, *others}
        for name in set(self.notes) - known:
            raise ValueError(
                f"external_models.notes has {name!r}, which is no recipe; "
                f"known recipes: {sorted(known)}"
            )


@dataclass(frozen=True)
class Environment:
    """What all external models share.

    ``python``: coqui's interpreter; ``root``: start of relative paths; ``consents``: consents by
    corpus for the voice of a recipe.
    """

    python: Path
    root: Path
    shape: Shape
    consents: Callable[[str], Mapping[str, VoiceConsent | None]]


class ExternalTrainProgram(ProgramConfig):
    """Configuration of ``tts_assets.external_models.train``.

    ``samples``: the ``kept.jsonl`` of each corpus.
    """

    name: str
    python: Path
    recipe: ExternalRecipe
    samples: dict[str, Path]
    validation: ValidationSplit


class ExternalSynthesisProgram(ProgramConfig):
    """Configuration of ``tts_assets.external_models.synthesize``.

    The model synthesizes each text of the suite with every seed. ``provenance`` is written into
    every file.
    """

    name: str
    family: Family
    python: Path
    model: Path
    suite: Path
    suite_name: str
    language: str
    seeds: tuple[int, ...]
    provenance: str
