"""A report beside the earlier ones of its recipe on the same suite.

Earlier reports are data like any other: what the page says of them is as of when it was made. They
are no input, or every report would make itself stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tts_assets.artifacts import (
    UNPARTITIONED,
    ArtifactStore,
    Build,
    Handle,
    Report,
    readable,
)
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
    asked = build.references()["suite"].content, build.code_version
    found = []
    for folder in store.published(build.asset, build.partition):
        report = readable(folder)
        if report is None or folder.name == build.fingerprint:
            continue
        if measure(report) == asked:
            written = (folder / "manifest.json").stat().st_mtime_ns
            found.append((written, folder, report.manifest.inputs["serving"].content))
    latest = sorted(found)[-MOST:]
    return tuple(EarlierReport(model=model, folder=folder) for _, folder, model in latest)


def measure(report: Handle) -> tuple[str, str]:
    """The suite's content and the code: figures of reports with the same can be compared."""
    return report.manifest.inputs["suite"].content, report.manifest.code_version


def readable_reports(
    store: ArtifactStore, asset: str, partition: str = UNPARTITIONED
) -> list[Report]:
    """The published reports of an asset, by fingerprint, without old ones that cannot be read;
    raises :class:`ArtifactError` if it is the current one that cannot."""
    current = (store.folder(asset, partition) / "current").resolve()
    found = []
    for folder in store.published(asset, partition):
        report = Report.open(folder) if folder.name == current.name else readable(folder)
        if isinstance(report, Report):
            found.append(report)
    return found


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
