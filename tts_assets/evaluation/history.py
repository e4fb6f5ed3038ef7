"""A report beside the earlier ones of its recipe on the same suite.

Earlier reports are data like any other: what the page says of them is as of when it was made. They
are no input, or every report would make itself stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tts_assets.artifacts import ArtifactError, ArtifactStore, Build, Handle, open_artifact
from tts_assets.evaluation.config import EarlierReport
from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.results import (
    Difference,
    Figures,
    SampleResult,
    difference,
    figures,
    read_samples,
)

MOST = 8  # reports back


@dataclass(frozen=True)
class Past:
    """An earlier report, and how the new one differs on the texts of both; by column."""

    model: str
    figures: Figures
    differences: dict[str, Difference]


def earlier_reports(store: ArtifactStore, build: Build) -> tuple[EarlierReport, ...]:
    """Published reports of the same asset, suite and model format, oldest first."""
    suite = build.references()["suite"].content
    found = []
    for folder in store.published(build.asset, build.partition):
        report = readable(folder)
        if report is None or folder.name == build.fingerprint:
            continue
        inputs = report.manifest.inputs
        if inputs["suite"].content == suite and report.manifest.code_version == build.code_version:
            written = (folder / "manifest.json").stat().st_mtime_ns
            found.append((written, folder, inputs["serving"].content))
    latest = sorted(found)[-MOST:]
    return tuple(EarlierReport(model=model, folder=folder) for _, folder, model in latest)


def readable(folder: Path) -> Handle | None:
    """The artifact; None if somebody is deleting it, or has."""
    try:
        return open_artifact(folder)
    except ArtifactError:
        return None


def past(
    samples: Sequence[SampleResult], earlier: Sequence[EarlierReport], columns: Sequence[Column]
) -> list[Past]:
    """Newest first; those that were deleted meanwhile are left out."""
    rows = []
    for report in reversed(earlier):
        before = [s for s in read_samples(report.folder) if s.temperature is None]
        if not before:
            continue
        pairs = {column.name: difference(before, samples, column) for column in columns}
        known = {name: pair for name, pair in pairs.items() if pair is not None}
        rows.append(Past(report.model, figures(before, columns), known))
    return rows
