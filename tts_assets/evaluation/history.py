"""A report beside the earlier ones of its recipe on the same suite.

Earlier reports are data like any other: what the page says of them is as of when it was made. They
are no input, or every report would make itself stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tts_assets.core.artifacts import (
    UNPARTITIONED,
    ArtifactStore,
    Build,
    Handle,
    InputRef,
    Report,
    readable,
)
from tts_assets.core.config import digest_of
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
WORDS = "words"  # the metric that every report has
EAR = ("whisper", "beam_size", "window_seconds", "language")
# By metric of ours, the keys of [evaluation] that it hears with; a plug-in may use all of them.
# Encoder and UTMOS are in a report's configuration as digests of their bytes, also as inputs.
HEARS_WITH: dict[str, tuple[str, ...]] = {
    WORDS: EAR,
    "pace": EAR,
    "truncation": EAR,
    "similarity": ("speaker_encoder",),
    "utmos": ("utmos",),
    "dnsmos": (),
    "pitch": (),
}
ALL = (*EAR, "speaker_encoder", "utmos")

Measures = Mapping[str, str]
"""By metric, a digest of what decides its numbers beside the speech."""


@dataclass(frozen=True)
class Past:
    """An earlier report, and how the new one differs on the texts of both; by column."""

    model: str
    figures: Figures
    differences: dict[str, Difference]


def earlier_reports(store: ArtifactStore, build: Build) -> tuple[EarlierReport, ...]:
    """Published reports of the same asset that measured as this one will, oldest first."""
    assert isinstance(build.config, Mapping)
    asked = measures(build.references(), build.config, build.code_version)
    found = []
    for folder in store.published(build.asset, build.partition):
        report = readable(folder)
        if report is None or folder.name == build.fingerprint:
            continue
        if not measured_differently([asked, measured(report)]):
            written = (folder / "manifest.json").stat().st_mtime_ns
            found.append((written, folder, report.manifest.inputs["serving"].content))
    latest = sorted(found)[-MOST:]
    return tuple(EarlierReport(model=model, folder=folder) for _, folder, model in latest)


def measured(report: Handle) -> Measures:
    manifest = report.manifest
    return measures(manifest.inputs, manifest.config, manifest.code_version)


def measures(
    inputs: Mapping[str, InputRef], config: Mapping[str, Any], code_version: str
) -> Measures:
    """How a report is measured. Not its whole configuration: who is asked at fewer temperatures is
    measured alike."""
    versions = {WORDS: ""} | config.get("versions", {})  # the oldest reports told none
    shared = inputs["suite"].content, code_version
    return {
        metric: digest_of(
            [shared, version, [config.get(key) for key in HEARS_WITH.get(metric, ALL)]]
        )
        for metric, version in versions.items()
    }


def measured_differently(reports: Iterable[Measures]) -> set[str]:
    """The metrics whose figures must not be compared. One that only some have is none of them: a
    metric that is added, or left out, leaves the others what they are."""
    found: dict[str, set[str]] = {}
    for report in reports:
        for metric, digest in report.items():
            found.setdefault(metric, set()).add(digest)
    return {metric for metric, digests in found.items() if len(digests) > 1}


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
