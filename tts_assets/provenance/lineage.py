"""The artifacts that an artifact was made from, and those that were made from it.

Both follow the inputs in the manifests of one storage. A deleted artifact ends the way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tts_assets.core.artifacts import (
    ArtifactStore,
    Handle,
    InputRef,
    readable,
)
from tts_assets.core.artifacts.handle import asset_name
from tts_assets.core.artifacts.verification import artifact_folders


@dataclass(frozen=True)
class Source:
    """One artifact on the way back: ``depth`` steps away, ``name`` as an input, None if deleted."""

    depth: int
    name: str
    reference: InputRef
    path: Path | None

    def __str__(self) -> str:
        where = str(self.path) if self.path else "deleted"
        label = f"{self.name}: " if self.name else ""
        asset = asset_name(self.reference)
        return f"{'  ' * self.depth}{label}{asset} {self.reference.content[:12]} ({where})"


def artifacts(store: ArtifactStore) -> list[Handle]:
    """All published artifacts of a storage that can be read, sorted by path."""
    folders = sorted(artifact_folders(store.root, store.root))
    return [handle for folder in folders if (handle := readable(folder)) is not None]


def way_back(store: ArtifactStore, handle: Handle) -> Iterator[Source]:
    """Yield ``handle`` and all that it was made from, depth first, each artifact once."""
    known: set[str] = set()

    def visit(depth: int, name: str, reference: InputRef) -> Iterator[Source]:
        folder = store.folder(reference.asset, reference.partition) / reference.fingerprint
        found = readable(folder) if folder.is_dir() else None
        yield Source(depth, name, reference, folder if found else None)
        if found is None or reference.content in known:
            return
        known.add(reference.content)
        for input_name, one in sorted(found.manifest.inputs.items()):
            yield from visit(depth + 1, input_name, one)

    yield from visit(0, "", handle.reference())


def made_from(handles: Iterable[Handle], corpus: str) -> list[Handle]:
    """All artifacts that depend on a corpus: its own, and what was made from them in any way.

    ``corpus`` is the partition of the corpus' data assets. The result is sorted by path.
    """
    handles = list(handles)
    affected = {one.content for one in handles if one.partition == corpus}
    inputs: Mapping[Path, set[str]] = {
        one.path: {reference.content for reference in one.manifest.inputs.values()}
        for one in handles
    }
    while True:
        more = {one.content for one in handles if inputs[one.path] & affected} - affected
        if not more:
            break
        affected |= more
    return sorted((one for one in handles if one.content in affected), key=lambda one: one.path)
