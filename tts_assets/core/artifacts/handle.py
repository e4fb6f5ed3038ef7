"""The manifest of an artifact, and the typed handles that open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from tts_assets.core.artifacts.files import ArtifactError, sha256_file
from tts_assets.core.config import Config

MANIFEST = "manifest.json"


class FileEntry(Config):
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


class InputRef(Config):
    """One input of a build: its asset, partition, content digest and fingerprint."""

    asset: str
    partition: str
    content: str
    fingerprint: str


class Manifest(Config):
    """``manifest.json``: everything that determined the artifact, its facts and its files."""

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
    """Base of the typed facts of an artifact: numbers and names that later stages read."""


class Handle:
    """A published artifact: its folder, its manifest and its typed facts.

    A subclass for each kind sets ``kind`` and ``facts_type``, and is registered by its kind.
    """

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
        """The digest of the names and bytes of all files."""
        return self.manifest.content

    @property
    def asset(self) -> str:
        """The asset key, its parts joined by ``/``."""
        return self.manifest.asset

    @property
    def partition(self) -> str:
        """The partition key; ``all`` for an asset without partitions."""
        return self.manifest.partition

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.asset}[{self.partition}] {self.content[:12]})"

    def reference(self) -> InputRef:
        """This artifact as an input in the manifest of another."""
        return InputRef(
            asset=self.asset,
            partition=self.partition,
            content=self.content,
            fingerprint=self.manifest.fingerprint,
        )

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an artifact of this kind. Raises :class:`ArtifactError` as :func:`open_artifact`
        does, and for another kind."""
        handle = open_artifact(path)
        if not isinstance(handle, cls):
            raise ArtifactError(
                f"{path} holds a {handle.kind!r} artifact, but a {cls.kind!r} is needed here"
            )
        return handle

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the manifest; raises :class:`ArtifactError`."""
        for name, entry in self.manifest.files.items():
            if sha256_file(self.path / name) != entry.sha256:
                raise ArtifactError(
                    f"{self.path / name} has changed since it was published; delete the folder "
                    f"{self.path} and materialize {self.asset} again"
                )


def readable(path: Path) -> Handle | None:
    """The artifact at ``path``, or None if it is incomplete, for example while it is deleted.

    For old artifacts only, which nothing depends on.
    """
    try:
        return open_artifact(path)
    except ArtifactError:
        return None


def open_artifact(path: Path) -> Handle:
    """Open the artifact at ``path`` as the handle of its kind.

    Raises :class:`ArtifactError` if there is no valid manifest, or if a file is missing or differs
    in size from it. File contents are not read; :meth:`Handle.verify` does that.
    """
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
