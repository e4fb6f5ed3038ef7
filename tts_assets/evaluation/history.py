"""Earlier reports of a recipe, and which of their metrics are comparable with a new report.

Earlier reports are no inputs of the asset: each new report would make itself outdated. A page
therefore shows the earlier reports that existed when it was written.

The lineage of a result are all artifacts that it depends on, as rows of a table.
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
    open_artifact,
    readable,
)
from tts_assets.core.config import digest_of
from tts_assets.evaluation.config import EarlierReport, LineageRow
from tts_assets.evaluation.metrics import Column
from tts_assets.evaluation.results import (
    Difference,
    Figures,
    SampleResult,
    difference,
    figures,
    read_samples,
)

MOST = 8  # earlier reports in a page
WORDS = "words"  # the metric that every report has
ASR_KEYS = ("whisper", "beam_size", "window_seconds", "language")
# The keys in a report's manifest that each metric depends on. Speaker encoder and UTMOS are there
# as digests of their bytes. A metric of another project may depend on all keys.
DEPENDS_ON: dict[str, tuple[str, ...]] = {
    WORDS: ASR_KEYS,
    "pace": ASR_KEYS,
    "truncation": ASR_KEYS,
    "similarity": ("speaker_encoder",),
    "utmos": ("utmos",),
    "dnsmos": (),
    "pitch": (),
}
ALL_KEYS = (*ASR_KEYS, "speaker_encoder", "utmos")

Measures = Mapping[str, str]
"""By metric, the digest of everything that determines its numbers beside the speech."""
# The facts that describe an artifact, and how they are written; {} is the value.
TEMPLATES = {
    "utterances": "{} utterances",
    "lines": "{} lines",
    "kept": "{} kept",
    "rejected": "{} rejected",
    "samples": "{} samples",
    "set_aside": "{} set aside",
    "train_samples": "{} for training",
    "val_samples": "{} for validation",
    "speakers": "{} speakers",
    "hours": "{:.2f} hours",
    "licence": "{}",
    "steps": "{} steps",
    "parameters": "{:,} parameters",
    "val_loss": "validation loss {:.3f}",
    "sample_rate": "{} Hz",
    "token_rate": "{:g} codes a second",
    "codebook_size": "codebook of {}",
    "texts": "{} texts",
}
HIDDEN = {"serving_model": {"sample_rate", "token_rate", "codebook_size"}}


@dataclass(frozen=True)
class EarlierRow:
    """An earlier report, and by column how the new one differs on the texts of both."""

    model: str
    figures: Figures
    differences: dict[str, Difference]


def earlier_reports(store: ArtifactStore, build: Build) -> tuple[EarlierReport, ...]:
    """The published reports of the same asset with the same measures, oldest first."""
    assert isinstance(build.config, Mapping)
    new = measures(build.references(), build.config, build.code_version)
    found = []
    for folder in store.published(build.asset, build.partition):
        report = readable(folder)
        if report is None or folder.name == build.fingerprint:
            continue
        if not measured_differently([new, measured(report)]):
            written = (folder / "manifest.json").stat().st_mtime_ns
            found.append((written, folder, report.manifest.inputs["serving"].content))
    latest = sorted(found)[-MOST:]
    return tuple(EarlierReport(model=model, folder=folder) for _, folder, model in latest)


def measured(report: Handle) -> Measures:
    """The measures of a published report."""
    manifest = report.manifest
    return measures(manifest.inputs, manifest.config, manifest.code_version)


def measures(
    inputs: Mapping[str, InputRef], config: Mapping[str, Any], code_version: str
) -> Measures:
    """The measures of a report with these inputs and this configuration.

    Not all keys count: another number of temperatures, for example, changes no metric.
    """
    versions = {WORDS: ""} | config.get("versions", {})  # the oldest reports have no versions
    shared = inputs["suite"].content, code_version
    return {
        metric: digest_of(
            [shared, version, [config.get(key) for key in DEPENDS_ON.get(metric, ALL_KEYS)]]
        )
        for metric, version in versions.items()
    }


def measured_differently(reports: Iterable[Measures]) -> set[str]:
    """The metrics whose figures are not comparable between the reports.

    A metric that only some of the reports have is not among them.
    """
    found: dict[str, set[str]] = {}
    for report in reports:
        for metric, digest in report.items():
            found.setdefault(metric, set()).add(digest)
    return {metric for metric, digests in found.items() if len(digests) > 1}


def readable_reports(
    store: ArtifactStore, asset: str, partition: str = UNPARTITIONED
) -> list[Report]:
    """The published reports of an asset, by fingerprint, without unreadable old ones.

    Raises :class:`ArtifactError` if the current report is unreadable.
    """
    current = (store.folder(asset, partition) / "current").resolve()
    found = []
    for folder in store.published(asset, partition):
        report = Report.open(folder) if folder.name == current.name else readable(folder)
        if isinstance(report, Report):
            found.append(report)
    return found


def earlier_rows(
    samples: Sequence[SampleResult], earlier: Sequence[EarlierReport], columns: Sequence[Column]
) -> list[EarlierRow]:
    """The earlier reports, newest first, without those that were deleted in the meantime."""
    rows = []
    for report in reversed(earlier):
        before = [s for s in read_samples(report.folder) if s.temperature is None]
        if not before:
            continue
        pairs = {column.name: difference(before, samples, column) for column in columns}
        known = {name: pair for name, pair in pairs.items() if pair is not None}
        rows.append(EarlierRow(report.model, figures(before, columns), known))
    return rows


HIDDEN |= dict.fromkeys(("checkpoint", "codec_shards", "code_arrays"), HIDDEN["serving_model"])


def lineage(store: ArtifactStore, handles: Iterable[Handle]) -> tuple[LineageRow, ...]:
    """``handles`` and their direct and indirect inputs, each once, inputs first."""
    rows: dict[tuple[str, str, str], LineageRow] = {}
    for handle in handles:
        _collect(store, handle, rows)
    return tuple(rows.values())


def _collect(
    store: ArtifactStore, handle: Handle, rows: dict[tuple[str, str, str], LineageRow]
) -> None:
    for reference in handle.manifest.inputs.values():
        if _key(reference) in rows:
            continue
        path = store.folder(reference.asset, reference.partition) / reference.fingerprint
        if path.is_dir():
            _collect(store, open_artifact(path), rows)
        else:
            rows[_key(reference)] = _row(reference, "", "no longer stored")
    key = _key(handle.reference())
    if key not in rows:
        rows[key] = _row(handle.reference(), handle.manifest.code_version, describe(handle))


def describe(handle: Handle) -> str:
    """The facts of an artifact that a reader needs, as text."""
    facts = handle.facts.model_dump()
    hidden = HIDDEN.get(handle.kind, set())
    parts = [
        template.format(facts[name])
        for name, template in TEMPLATES.items()
        if name in facts and name not in hidden and facts[name] not in (0, "", None)
    ]
    return ", ".join(parts)


def _key(reference: InputRef) -> tuple[str, str, str]:
    return reference.asset, reference.partition, reference.fingerprint


def _row(reference: InputRef, code_version: str, detail: str) -> LineageRow:
    return LineageRow(
        asset=reference.asset,
        partition=reference.partition,
        content=reference.content,
        code_version=code_version,
        detail=detail,
        fingerprint=reference.fingerprint if code_version else "",
    )


def path_to_storage(asset: str) -> str:
    """The relative path from the folder of an artifact to the storage."""
    return "../" * (len(asset.split("/")) + 2)  # partition and fingerprint
