"""The manifest of an artifact, and the typed handle by which it is passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from tts_assets.core.artifacts.files import ArtifactError, sha256_file
from tts_assets.core.config import Config

MANIFEST = "manifest.json"


class FileEntry(Config):
    size: int
    sha256: str


class InputRef(Config):
    """What an artifact was made from: which asset, which content, where it lay."""

    asset: str
    partition: str
    content: str
    fingerprint: str


class Manifest(Config):
    kind: str
    asset: str
    partition: str
    fingerprint: str
    content: str
    code_version: str
    seed: int
    config: dict[str, Any]
    inputs: dict[str, InputRef]
    facts: dict[str, Any]
    files: dict[str, FileEntry]
    python: str
    libraries: dict[str, str]


class Facts(Config):
    """The typed numbers and names of an artifact that the next stage checks."""


class Handle:
    """A published artifact of one kind: its folder, its content digest and its typed facts."""

    kind: ClassVar[str]
    facts_type: ClassVar[type[Facts]]
    registry: ClassVar[dict[str, type[Handle]]] = {}

    def __init_subclass__(cls) -> None:
        Handle.registry[cls.kind] = cls

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.facts: Any = self.facts_type.parse(manifest.facts, f"{path / MANIFEST}: facts")

    @property
    def content(self) -> str:
        return self.manifest.content

    @property
    def asset(self) -> str:
        return self.manifest.asset

    @property
    def partition(self) -> str:
        return self.manifest.partition

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.asset}[{self.partition}] {self.content[:12]})"

    def reference(self) -> InputRef:
        return InputRef(
            asset=self.asset,
            partition=self.partition,
            content=self.content,
            fingerprint=self.manifest.fingerprint,
        )

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an artifact folder of this kind; its files must exist in their recorded sizes."""
        handle = open_artifact(path)
        if not isinstance(handle, cls):
            raise ArtifactError(
                f"{path} holds a {handle.kind!r} artifact, but a {cls.kind!r} is needed here"
            )
        return handle

    def verify(self) -> None:
        """Read every file again and compare its SHA-256 with the manifest."""
        for name, entry in self.manifest.files.items():
            if sha256_file(self.path / name) != entry.sha256:
                raise ArtifactError(
                    f"{self.path / name} has changed since it was published; delete the folder "
                    f"{self.path} and materialize {self.asset} again"
                )


def readable(path: Path) -> Handle | None:
    """An old artifact that nothing depends on; None if somebody is deleting it, or has."""
    try:
        return open_artifact(path)
    except ArtifactError:
        return None


def open_artifact(path: Path) -> Handle:
    """Open whatever kind of artifact lies at ``path`` as its typed handle."""
    try:
        manifest = Manifest.from_json(path / MANIFEST)
    except ValueError as error:
        raise ArtifactError(f"{path} is not a published artifact: {error}") from None
    if manifest.kind not in Handle.registry:
        raise ArtifactError(f"{path}: unknown artifact kind {manifest.kind!r}")
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry.size:
            state = "is missing" if not file.is_file() else "has another size than recorded"
            raise ArtifactError(
                f"{file} {state}; delete the folder {path} and materialize {manifest.asset} again"
            )
    return Handle.registry[manifest.kind](path, manifest)
