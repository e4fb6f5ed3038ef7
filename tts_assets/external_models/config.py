"""Configuration of other model families: the environment they run in, and their recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.core.split import ValidationSplit

Family = Literal["xtts", "vits", "tortoise"]
RATES: dict[str, int] = {"xtts": 22050, "vits": 22050, "tortoise": 22050}  # Hz they are fed with
CLONING: tuple[Family, ...] = ("xtts", "tortoise")  # say a text in the voice of clips
LEARNING_RATES: dict[str, float] = {"xtts": 5e-6, "vits": 2e-4, "tortoise": 0.0}  # coqui's own


class ExternalRecipe(Config):
    """``[families.recipes.<name>]``: one model of a family other than our own SpeechLM.

    Weights of all corpora are equal: coqui's trainer draws from one list.
    """

    family: Family = Field(description="'speechlm', our own, is an [sft] recipe")
    corpora: tuple[str, ...] = Field(min_length=1, description="whose filtered samples it learns")
    model: Path | None = Field(
        None,
        description="folder of coqui's published weights; unset: random ones, to try the way out",
    )
    epochs: int = Field(100, ge=1, description="unused by tortoise, which coqui does not train")
    batch_size: int = Field(16, ge=1)
    learning_rate: float | None = Field(None, gt=0, description="unset: coqui's for the family")
    save_steps: int = Field(1000, ge=1, description="between two checkpoints to go on from")
    log_steps: int = Field(25, ge=1, description="between two lines of metrics")
    export: Literal["last", "best"] = Field("last", description="best: of validation")
    sample_rate: int | None = Field(None, ge=8000, description="of vits, in Hz; unset: 22050")
    longest: float = Field(11.6, gt=0, description="seconds of a clip; xtts takes no more")
    voices: int = Field(3, ge=1, description="clips that stand for the voice, where it is cloned")
    seed: int = 1
    config: dict[str, Any] = Field(
        default_factory=dict, description="keys of coqui's own configuration, laid over these"
    )

    @field_validator("family", mode="before")
    @classmethod
    def _ours_is_elsewhere(cls, family: Any) -> Any:
        if family == "speechlm":
            raise ValueError("speechlm is this project's own family: write it as [sft.<name>]")
        return family

    @property
    def rate(self) -> int:
        """Hz of the clips that it is fed with."""
        return self.sample_rate or RATES[self.family]

    def with_model(self, folder: Path) -> ExternalRecipe:
        return self.model_copy(update={"model": folder})

    @model_validator(mode="after")
    def _check_family(self) -> Self:
        if self.family != "vits" and self.sample_rate is not None:
            raise ValueError(f"{self.family} has {RATES[self.family]} Hz: leave sample_rate out")
        if self.family == "vits" and self.model is not None:
            raise ValueError("vits is trained from scratch: leave model out")
        if self.family == "xtts" and self.longest > 11.6:
            raise ValueError("xtts takes clips of at most 11.6 s: set longest to that or less")
        return self


class ExternalModelsConfig(Config):
    """``[families]``: models of coqui-tts, and what the table of all families says of them."""

    python: Path | None = Field(None, description="interpreter of an environment with coqui-tts")
    recipes: dict[str, ExternalRecipe] = Field(default_factory=dict)
    notes: dict[str, str] = Field(
        default_factory=dict, description="by recipe of any family, for the table model_families"
    )

    @model_validator(mode="after")
    def _check_python(self) -> Self:
        if self.recipes and self.python is None:
            raise ValueError(
                "recipes need an environment with coqui-tts: set families.python to its "
                "interpreter, for example python = '/opt/coqui/bin/python' (docs/families.md)"
            )
        return self


class ExternalTrainProgram(ProgramConfig):
    """``samples``: the ``kept.jsonl`` to train on, by corpus."""

    name: str
    python: Path
    recipe: ExternalRecipe
    samples: dict[str, Path]
    validation: ValidationSplit


class ExternalSynthesisProgram(ProgramConfig):
    """``tts_assets.external_models.speak``: a model says a suite, each text with every seed.
    ``provenance`` is written into every file."""

    name: str
    family: Family
    python: Path
    model: Path
    suite: Path
    suite_name: str
    language: str
    seeds: tuple[int, ...]
    provenance: str
