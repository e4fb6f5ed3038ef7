"""Configuration of evaluation: suites, metrics, ASR model, gates, comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.speakers.config import RESEMBLYZER

METRICS = ("words", "dnsmos", "utmos", "similarity", "pitch", "pace", "truncation")
MAIN = "main"  # name of the suite of [evaluation], beside the names of [evaluation.suites]
TEMPERATURE_TEXTS = 2  # of each category, synthesized at further temperatures
BEAM_SIZE = 5  # of the ASR model; it is part of the cache keys of transcripts


class SuiteConfig(Config):
    """``[evaluation.suites.<name>]``: an additional suite, with separate reports."""

    path: Path = Field(
        description="JSONL file, meta.lst of Seed-TTS-eval, or prompt_wav.scp of CV3-Eval"
    )
    language: str = Field("en", description="of texts without a language")
    whisper: str = Field("", description="ASR model; empty: the one of [evaluation]")
    recipes: tuple[str, ...] = Field(
        (), description="recipes to evaluate; empty: all whose speech is in a language of the suite"
    )


class ComparisonConfig(Config):
    """``[evaluation.comparisons.<name>]``: models on the same texts; the first is the baseline."""

    models: tuple[str, ...] = Field(min_length=2, description="recipes, as in report/<recipe>")
    suite: str = Field("", description="one of the further suites; empty: the main suite")
    blind_trials: int = Field(10, ge=1, description="of each pair of models in the blind test")

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) < len(models):
            raise ValueError(f"{list(models)} names a model twice: name each once")
        return models


class GateConfig(Config):
    """``[evaluation.gates]``: blocking limits on how much worse a report may be than the baseline.

    The baseline is the best earlier report. A gate fails only if the whole 95 % interval of the
    difference is beyond the margin. An unset margin is not checked.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"incumbent": "baseline"}

    wer: float | None = Field(
        None, ge=0, description="largest rise of the WER: 0.02 is two percentage points"
    )
    speaker_similarity: float | None = Field(
        None, ge=0, description="largest fall of the speaker similarity, such as 0.03"
    )
    baseline: str = Field(
        "", description="recipe whose best report is the baseline; empty: the same recipe"
    )

    @property
    def margins(self) -> dict[str, float]:
        """The margins that are set, by column of the report."""
        given = {"wer": self.wer, "speaker_similarity": self.speaker_similarity}
        return {name: margin for name, margin in given.items() if margin is not None}


class EvaluationConfig(Config):
    """``[evaluation]``: every serving model synthesizes the suite, and metrics score the clips."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "references": "reference_clips",
        "target": "reference_corpora",
    }
    removed_keys: ClassVar[Mapping[str, Any]] = {
        "beam_size": BEAM_SIZE,
        "sampling": None,  # always that of the serving model, which users get
        "voice": "",
        "temperature_texts": TEMPERATURE_TEXTS,
    }

    suite: Path = Field(description="JSONL file with id, category, text, …; or a meta.lst")
    language: str = Field("en", description="of texts without a language")
    suites: dict[str, SuiteConfig] = Field(default_factory=dict)
    seeds: tuple[int, ...] = Field((42,), min_length=1, description="one synthesis for each")
    temperatures: tuple[float, ...] = Field(
        (), description="two texts of each category are synthesized at these temperatures as well"
    )
    metrics: tuple[str, ...] = Field(METRICS, description="names, or 'package.module:Class'")
    utmos: Path | None = Field(None, description="UTMOS as an ONNX file; unset: not measured")
    speaker_encoder: str = Field(
        RESEMBLYZER,
        description='"resemblyzer", "speaker_encoder" (the asset), a folder or hub name, also of '
        "a WavLM, or an .onnx of WeSpeaker",
    )
    whisper: str = Field(
        "",
        description='ASR model of faster-whisper, or "transformers:" and a folder or hub name; '
        'empty: tiny.en; "none": no WER is measured',
    )
    window_seconds: float = Field(
        15.0, ge=4.0, le=30.0, description="input of Whisper; 15 takes a third of the time of 30"
    )
    reference_clips: int = Field(
        10, ge=1, description="validation clips whose mean embedding is the reference speaker"
    )
    reference_corpora: tuple[str, ...] = Field(
        (),
        description="corpora of the reference clips for speaker similarity and duration ratio; "
        "empty: those of each recipe, and then these metrics are compared within the same corpora",
    )
    batch_size: int = Field(
        8, ge=1, description="texts synthesized at once; results differ by rounding"
    )
    gates: GateConfig = GateConfig()
    comparisons: dict[str, ComparisonConfig] = Field(default_factory=dict)

    def for_suite(self, name: str) -> EvaluationConfig:
        """The configuration for the reports of suite ``name``; :data:`MAIN` is this one."""
        if name == MAIN:
            return self
        suite = self.suites[name]
        values = {"suite": suite.path, "language": suite.language}
        values |= {"whisper": suite.whisper} if suite.whisper else {}
        return self.model_copy(update=values)

    def suites_of(self, recipe: str) -> list[str]:
        """The names of the suites that the configuration has for ``recipe``, :data:`MAIN` first."""
        asked = [name for name, s in self.suites.items() if not s.recipes or recipe in s.recipes]
        return [MAIN, *asked]

    def determining(self) -> dict[str, Any]:
        """The values that determine a report's bytes, without paths, under their former names."""
        excluded = {"suite", "suites", "gates", "comparisons", "utmos", "speaker_encoder"}
        # Reports from before this key existed keep their fingerprints.
        excluded |= set() if self.reference_corpora else {"reference_corpora"}
        return self.canonical(exclude=excluded)

    def check_recipes(self, recipes: Set[str], compared: Set[str]) -> None:
        """Raise ValueError for an unknown recipe; ``compared`` have a comparison by default."""
        named = {f"suites.{name}.recipes": suite.recipes for name, suite in self.suites.items()}
        named |= {f"comparisons.{name}.models": c.models for name, c in self.comparisons.items()}
        named |= {"gates.baseline": (self.gates.baseline,) if self.gates.baseline else ()}
        for key, names in named.items():
            for name in set(names) - recipes:
                raise ValueError(
                    f"evaluation.{key} names {name!r}, which is no recipe; "
                    f"known recipes: {sorted(recipes)}"
                )
        for name in compared & set(self.comparisons):
            raise ValueError(
                f"evaluation.comparisons.{name}: comparison/{name} already compares the rlhf "
                "or dpo recipe with its base; choose another name"
            )
        for name, comparison in self.comparisons.items():
            for model in comparison.models if comparison.suite else ():
                if comparison.suite not in self.suites_of(model):
                    raise ValueError(
                        f"evaluation.comparisons.{name}.suite is {comparison.suite!r}, on which "
                        f"{model!r} is not evaluated: it is one of {self.suites_of(model)}"
                    )

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in {MAIN, "all"} & set(self.suites):
            raise ValueError(f"suites.{name}: the name is taken; choose another")
        return self


class LineageRow(Config):
    """An artifact that a result depends on; ``detail`` describes it in words."""

    asset: str
    partition: str
    content: str
    code_version: str
    detail: str
    fingerprint: str = Field("", description="empty: it is no longer stored")

    @property
    def folder(self) -> str:
        """The folder relative to the storage; empty if there is none."""
        return f"{self.asset}/{self.partition}/{self.fingerprint}" if self.fingerprint else ""


class EarlierReport(Config):
    """A report of the same recipe and suite that was published earlier."""

    model: str = Field(description="content digest of its serving model")
    folder: Path


@dataclass(frozen=True)
class PlannedComparison:
    """A comparison with the suite of each model's report, and the deciding categories.

    ``suites``: by model, the baseline first; :data:`MAIN` is the main suite of the model.
    """

    name: str
    suites: Mapping[str, str]
    evaluation: EvaluationConfig
    blind_trials: int
    decisive: list[str]


def planned_comparisons(
    evaluation: EvaluationConfig,
    aligned: Mapping[str, str],
    suites: Mapping[str, Sequence[str]],
    decisive: Mapping[str, Sequence[str]],
) -> Iterator[PlannedComparison]:
    """A comparison of each aligned recipe with its base, and those of the configuration.

    ``suites``: those of each recipe, its main suite first. ``decisive``: by recipe, the categories
    that its promotion looks at.
    """
    own = {name: ComparisonConfig(models=(base, name)) for name, base in aligned.items()}
    for name, one in {**own, **evaluation.comparisons}.items():
        yield PlannedComparison(
            name,
            {
                model: MAIN if one.suite in ("", suites.get(model, [MAIN])[0]) else one.suite
                for model in one.models
            },
            evaluation.for_suite(one.suite or MAIN),
            one.blind_trials,
            sorted({category for model in one.models for category in decisive.get(model, ())}),
        )


class EvaluationProgram(ProgramConfig):
    """Configuration of ``tts_assets.evaluation.evaluate``.

    The speech is either synthesized with ``serving_model``, or read from ``synthesized``, a folder
    that ``metric_runner.py`` describes. ``suite`` is a ``suite.jsonl``. ``references`` are clips
    of the reference speaker, ``speakers`` those of speakers that texts name.
    ``characters_per_second`` is the pace of the reference recordings, 0 if it is unknown.
    ``cache``: file for transcripts and metrics by audio digest. ``earlier``: oldest first.
    ``training``: lists of training samples, empty if unknown. ``storage``: the relative path from
    the published report to the storage, such as ``../../../../``; empty for a page without links.
    """

    name: str
    suite_name: str = MAIN
    evaluation: EvaluationConfig
    serving_model: Path | None = None
    synthesized: Path | None = None
    suite: Path
    references: tuple[Path, ...]
    speakers: dict[str, tuple[Path, ...]] = Field(default_factory=dict)
    characters_per_second: float = 0.0
    cache: Path | None = None
    lineage: tuple[LineageRow, ...] = ()
    earlier: tuple[EarlierReport, ...] = ()
    training: tuple[Path, ...] = ()
    storage: str = ""

    @property
    def measurements(self) -> Path:
        """The file of cached measurements; in the run folder if the configuration names none."""
        return self.cache or self.run_dir / "metrics.sqlite"

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.serving_model is None) == (self.synthesized is None):
            raise ValueError("set either serving_model or synthesized")
        return self
