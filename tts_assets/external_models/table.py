"""The table of all models, SpeechLMs and external ones, and the metadata of external ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts_assets.core.artifacts import (
    ArtifactStore,
    ExternalModel,
    ExternalModelsTable,
    Report,
    sha256_file,
)
from tts_assets.core.config import Config, canonical_json
from tts_assets.core.metadata import Markdown, Metadata, curves, image, table_row
from tts_assets.core.program import METRICS_FILE, read_metrics
from tts_assets.evaluation.history import measured, measured_differently, readable_reports

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
