"""Configuration of evaluation: suites, ears, metrics, gates, what is compared with what."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.speakers.config import RESEMBLYZER
from tts_assets.speechlm.config import SamplingConfig

METRICS = ("words", "dnsmos", "utmos", "similarity", "pitch", "pace", "truncation")
MAIN = "main"  # what the suite of [evaluation] is called beside the others


class SuiteConfig(Config):
    """``[evaluation.suites.<name>]``: one more suite, with reports of its own."""

    path: Path = Field(description="JSONL, or Seed-TTS-eval's meta.lst")
    language: str = Field("en", description="of texts that name none")
    whisper: str = Field("", description="the ear; empty: that of [evaluation]")
    recipes: tuple[str, ...] = Field((), description="who says it; empty: every recipe")


class ComparisonConfig(Config):
    """``[evaluation.comparisons.<name>]``: models on the same texts, the first is the baseline."""

    models: tuple[str, ...] = Field(min_length=2, description="recipes, as in report/<recipe>")
    blind_trials: int = Field(10, ge=1, description="of each pair of models in the blind test")

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) < len(models):
            raise ValueError(f"{list(models)} names a model twice: name each once")
        return models


class GateConfig(Config):
    """``[evaluation.gates]``: a report must not be worse than the incumbent's by more than this.

    A margin is missed only where the whole 95 % interval of the difference lies beyond it: what
    may be chance blocks nothing. Unset: no such gate.
    """

    wer: float | None = Field(None, ge=0, description="0.02: two points more word errors")
    speaker_similarity: float | None = Field(None, ge=0, description="0.03: so much less alike")
    incumbent: str = Field(
        "", description="a recipe, whose best report counts; empty: the same recipe"
    )

    @property
    def margins(self) -> dict[str, float]:
        given = {"wer": self.wer, "speaker_similarity": self.speaker_similarity}
        return {name: margin for name, margin in given.items() if margin is not None}


class EvaluationConfig(Config):
    """``[evaluation]``: every serving model says the whole suite, and is scored."""

    suite: Path = Field(description="JSONL: id, category, text, …; or a meta.lst")
    language: str = "en"
    suites: dict[str, SuiteConfig] = Field(default_factory=dict)
    seeds: tuple[int, ...] = Field((42,), min_length=1, description="syntheses of each text")
    voice: str = Field("", description="a voice of the serving model; empty: no voice prompt")
    sampling: SamplingConfig | None = Field(None, description="none: the serving model's own")
    temperatures: tuple[float, ...] = Field((), description="a few texts are said at these, too")
    temperature_texts: int = Field(2, ge=1, description="texts of each category for that")
    metrics: tuple[str, ...] = Field(METRICS, description="names, or 'package.module:Class'")
    utmos: Path | None = Field(None, description="UTMOS as an ONNX file; none: not measured")
    speaker_encoder: str = Field(
        RESEMBLYZER, description='who tells voices: "resemblyzer", "speaker_encoder", or a folder'
    )
    whisper: str = Field("", description="a faster-whisper model; empty: the packaged tiny.en")
    beam_size: int = Field(5, ge=1)
    window_seconds: float = Field(
        15.0, ge=4.0, le=30.0, description="of Whisper; at 15 a third of the time of 30"
    )
    references: int = Field(10, ge=1, description="validation clips that stand for the speaker")
    target: tuple[str, ...] = Field(
        (),
        description="corpora whose clips every report measures likeness and pace against; empty: "
        "those of each recipe, and recipes of different corpora are not compared in these",
    )
    batch_size: int = Field(8, ge=1, description="texts spoken at a time; changes rounding")
    gates: GateConfig = GateConfig()
    comparisons: dict[str, ComparisonConfig] = Field(default_factory=dict)

    def for_suite(self, name: str) -> EvaluationConfig:
        """The configuration of one suite's reports; :data:`MAIN` is that of this table."""
        if name == MAIN:
            return self
        suite = self.suites[name]
        values = {"suite": suite.path, "language": suite.language}
        values |= {"whisper": suite.whisper} if suite.whisper else {}
        return self.model_copy(update=values)

    def suites_of(self, recipe: str) -> list[str]:
        """The suites that a recipe is asked to say, :data:`MAIN` first."""
        asked = [name for name, s in self.suites.items() if not s.recipes or recipe in s.recipes]
        return [MAIN, *asked]

    def determining(self) -> dict[str, Any]:
        """What of it decides a report's bytes, free of paths."""
        aside = {"suite", "suites", "gates", "comparisons", "utmos", "speaker_encoder"}
        aside |= set() if self.target else {"target"}  # reports from before it stay what they are
        return self.model_dump(mode="json", exclude=aside)

    def check_recipes(self, recipes: Set[str], compared: Set[str]) -> None:
        """Raise ValueError for a recipe that is nowhere; ``compared`` have comparisons already."""
        named = {f"suites.{name}.recipes": suite.recipes for name, suite in self.suites.items()}
        named |= {f"comparisons.{name}.models": c.models for name, c in self.comparisons.items()}
        named |= {"gates.incumbent": (self.gates.incumbent,) if self.gates.incumbent else ()}
        for key, names in named.items():
            for name in set(names) - recipes:
                raise ValueError(
                    f"evaluation.{key} names {name!r}, which is no recipe; "
                    f"known recipes: {sorted(recipes)}"
                )
        for name in compared & set(self.comparisons):
            raise ValueError(
                f"evaluation.comparisons.{name}: comparison/{name} is that of the rlhf recipe "
                "with its base; choose another name"
            )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in {MAIN, "all"} & set(self.suites):
            raise ValueError(f"suites.{name}: the name is taken; choose another")
        if self.sampling and self.sampling.temperature in self.temperatures:
            raise ValueError(
                f"temperatures has {self.sampling.temperature:g}, at which every text is said "
                "anyway; take it out"
            )
        return self


class LineageRow(Config):
    """One artifact that a result was made from, in words."""

    asset: str
    partition: str
    content: str
    code_version: str
    detail: str


class EarlierReport(Config):
    """A report of the same recipe and suite that was published before, oldest first."""

    model: str = Field(description="content of its serving model")
    folder: Path


class EvaluationProgram(ProgramConfig):
    """``tts_assets.evaluation.evaluate``: one serving model says one suite, or has ``spoken`` it.

    ``suite`` is a ``suite.jsonl``; ``references`` are clips of the speaker that is imitated,
    ``speakers`` those of the speakers that texts name. ``characters_per_second`` is the pace of
    the recordings, 0 if it is not known. ``cache`` keeps what metrics found, by audio.
    """

    name: str
    suite_name: str = MAIN
    evaluation: EvaluationConfig
    serving_model: Path | None = None
    spoken: Path | None = Field(None, description="folder of spoken.py")
    suite: Path
    references: tuple[Path, ...]
    speakers: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    characters_per_second: float = 0.0
    cache: Path | None = None
    lineage: tuple[LineageRow, ...] = ()
    earlier: tuple[EarlierReport, ...] = ()

    @model_validator(mode="after")
    def _check_who_speaks(self) -> Self:
        if (self.serving_model is None) == (self.spoken is None):
            raise ValueError("name a serving_model that says the suite, or what was spoken")
        return self
