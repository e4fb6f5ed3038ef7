"""The lineage of a result: all artifacts that it depends on, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable

from tts_assets.core.artifacts import ArtifactStore, Handle, InputRef, open_artifact
from tts_assets.evaluation.config import LineageRow

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
    )
