"""Configuration of external models (XTTS, VITS, Tortoise), and the table of all models."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    ArtifactStore,
    ExternalModel,
    ExternalModelsTable,
    Report,
    sha256_file,
)
from tts_assets.core.compute import Shape
from tts_assets.core.config import Config, canonical_json
from tts_assets.core.metadata import Markdown, Metadata, curves, image, table_row
from tts_assets.core.program import METRICS_FILE, ProgramConfig, read_metrics
from tts_assets.corpora.config import VoiceConsent
from tts_assets.evaluation.history import measured, measured_differently, readable_reports

Family = Literal["xtts", "vits", "tortoise"]
SAMPLE_RATES: dict[str, int] = {"xtts": 22050, "vits": 22050, "tortoise": 22050}  # Hz, of training
CLONING: tuple[Family, ...] = ("xtts", "tortoise")  # models that imitate the voice of clips
LEARNING_RATES: dict[str, float] = {"xtts": 5e-6, "vits": 2e-4, "tortoise": 0.0}  # coqui's defaults
TABLE_FILE, ROWS_FILE = "families.md", "families.json"
NOT_YET, TRAINED, REPORTED = "not trained yet", "trained", "reported"
FIGURES = ("wer", "speaker_similarity", "dnsmos_p808")
HEAD = (
    *("recipe", "family", "status", "runs"),
    *("WER", "speaker similarity", "DNSMOS P.808", "notes"),
)
LOSSES: dict[str, dict[str, str]] = {  # titles of the plot by coqui's names
    "vits": {"loss_mel": "mel", "val_loss_mel": "mel, validation", "loss_duration": "duration"},
    "xtts": {
        "loss_text_ce": "text",
        "val_loss_text_ce": "text, validation",
        "loss_mel_ce": "mel",
        "val_loss_mel_ce": "mel, validation",
    },
}
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
    corpus for the voice of a recipe, and for the corpora that its model was made from.
    """

    python: Path
    root: Path
    shape: Shape
    consents: Callable[[str, Collection[str]], Mapping[str, VoiceConsent | None]]


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


@dataclass(frozen=True)
class ModelSource:
    """The model family of a recipe, and the stage of its model: ``<stage>/<recipe>``."""

    family: str
    stage: str


class TableRow(Config):
    """A recipe in the table.

    ``runs``: number of published models. The metrics are those of the report with the lowest WER,
    of the ``figures_of`` reports that measure in the same way as the current one.
    """

    recipe: str
    family: str
    status: str
    runs: int
    figures_of: int = 0
    wer: float | None = None
    speaker_similarity: float | None = None
    dnsmos_p808: float | None = None
    notes: str = ""


def row(store: ArtifactStore, name: str, source: ModelSource, notes: Mapping[str, str]) -> TableRow:
    """The row of a recipe.

    Raises :class:`ArtifactError` if its current report is unreadable.
    """
    runs = len(store.published(f"{source.stage}/{name}"))
    found = comparable_reports(store, name)
    best = min(found, key=lambda r: (rank(r.facts.wer), r.manifest.fingerprint), default=None)
    figures = {} if best is None else best.facts.model_dump(include=set(FIGURES))
    return TableRow(
        recipe=name,
        family=source.family,
        status=REPORTED if found else TRAINED if runs else NOT_YET,
        runs=runs,
        figures_of=len(found),
        notes=notes.get(name, ""),
        **figures,
    )


def rank(wer: float | None) -> float:
    """The WER for sorting; a report without one comes last."""
    return math.inf if wer is None else wer


def comparable_reports(store: ArtifactStore, name: str) -> list[Report]:
    """The reports of a recipe that are comparable with its current report."""
    asset = f"report/{name}"
    link = store.folder(asset) / "current"
    if not link.exists():
        return []
    current = measured(Report.open(link.resolve()))
    found = readable_reports(store, asset)
    return [report for report in found if not measured_differently([current, measured(report)])]


def write(folder: Path, rows: Sequence[TableRow]) -> dict[str, Any]:
    """Write the table as Markdown and as JSON; returns the facts of the artifact."""
    (folder / ROWS_FILE).write_text(canonical_json(rows) + "\n")
    (folder / TABLE_FILE).write_text(markdown(rows))
    return {
        "recipes": len(rows),
        "trained": sum(row.runs > 0 for row in rows),
        "reported": sum(row.status == REPORTED for row in rows),
    }


def markdown(rows: Sequence[TableRow]) -> str:
    """The table as Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(cells(row) for row in rows)]
    return "".join(f"{table_row(line)}\n" for line in lines)


def cells(row: TableRow) -> tuple[str, ...]:
    """The texts of a row's cells; a missing metric is an empty cell."""

    def number(value: float | None, digits: int, scale: float = 1.0, unit: str = "") -> str:
        return "" if value is None else f"{value * scale:.{digits}f}{unit}"

    return (
        row.recipe,
        row.family,
        row.status,
        str(row.runs),
        number(row.wer, 1, 100.0, " %"),
        number(row.speaker_similarity, 2),
        number(row.dnsmos_p808, 2),
        row.notes,
    )


def describe_model(model: ExternalModel) -> Metadata:
    """Metadata: the losses as a plot; nothing for a model that coqui cannot train."""
    path, lines = model.path / METRICS_FILE, LOSSES.get(model.facts.family)
    if not path.is_file() or lines is None:
        return {}
    plot = curves(read_metrics(path), [lines], x_label="step")
    return {"losses": image("losses", plot)}


def describe_table(made: ExternalModelsTable) -> Metadata:
    """Metadata: the table."""
    return {"table": Markdown((made.path / TABLE_FILE).read_text())}


def weights_digests(folder: Path | None) -> dict[str, str]:
    """SHA-256 of every file of coqui's published weights, by relative path."""
    if folder is None:
        return {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}
