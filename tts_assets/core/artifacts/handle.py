"""The manifest of an artifact, and the typed handles that open it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

from tts_assets.core.artifacts.files import ArtifactError, sha256_file
from tts_assets.core.config import Config, ConfigError, digest_of

MANIFEST = "manifest.json"
UNPARTITIONED = "all"
THREADS = 4  # files that are read at once; SHA-256 releases the GIL
MOST_PROBLEMS = 10  # in one message
IGNORED = ".nfs"  # NFS clients rename a file that is deleted while it is open


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
    """Base of the typed facts of an artifact: numbers and names that later stages read.

    Asset pages show those of ``folded`` in the bookkeeping only: names that the asset's key has,
    digests, paths, and numbers that no run changes, which need no plot.
    """

    folded: ClassVar[Set[str]] = {
        *("corpus", "name", "recipe", "stage", "suite", "root", "membership", "dtype"),
        *("codec", "codec_path", "vocabulary", "text_tokens"),
        *("sample_rate", "hop_length", "token_rate", "codebook_size"),
        *("codebooks", "pattern", "frame"),
    }


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

    @property
    def remedy(self) -> str:
        """What to do if the files of this artifact are damaged."""
        return remedy(self.path, self.manifest)

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
        """Compare the SHA-256 of every file with the manifest, and look for files that were added.

        Reads every byte; ``verification.verify`` remembers the result. Raises
        :class:`ArtifactError` with all problems and what to do.
        """
        if problems := find_problems(self):
            raise ArtifactError(described(problems))


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
            raise ArtifactError(f"{file} {state}; {remedy(path, manifest)}")
    try:
        return Handle.registry[manifest.kind](path, manifest)
    except ConfigError as error:  # of another version of this project
        raise ArtifactError(f"{error}; {remedy(path, manifest)}") from None


def remedy(path: Path, manifest: Manifest) -> str:
    """What to do if the files of the artifact at ``path`` are damaged."""
    return f"delete the folder {path} and materialize {asset_name(manifest)} again"


def asset_name(source: Manifest | InputRef) -> str:
    """The asset of an artifact, with its partition in brackets if there is one."""
    partitioned = source.partition != UNPARTITIONED
    return f"{source.asset}[{source.partition}]" if partitioned else source.asset


def find_problems(handle: Handle, remedy: str = "") -> list[str]:
    """All problems of an artifact, with what to do; empty if it is as it was published.

    ``remedy`` replaces that of the artifact. Reads every byte. Files that are not in the manifest
    are problems, too.
    """
    files, remedy = handle.manifest.files, remedy or handle.remedy
    with ThreadPoolExecutor(THREADS) as pool:
        damaged = chain.from_iterable(
            pool.map(lambda item: file_problem(handle.path / item[0], item[1]), files.items())
        )
        problems = [f"{problem}; {remedy}" for problem in damaged]
    digests = {name: entry.sha256 for name, entry in files.items()}
    if digest_of({"kind": handle.kind, "files": digests}) != handle.content:
        problems.append(f"{handle.path / MANIFEST} has changed; {remedy}")
    return problems + [
        f"{handle.path / name} was added to {handle.asset} after it was published; delete this file"
        for name in sorted(set(names_below(handle.path)) - {MANIFEST, *files})
    ]


def file_problem(path: Path, entry: FileEntry) -> Iterator[str]:
    """Yield what is wrong with a file, if anything is."""
    try:
        if sha256_file(path) != entry.sha256:
            yield f"{path} has changed since it was published"
    except OSError as error:
        yield f"{path} cannot be read ({error.strerror})"


def described(problems: list[str]) -> str:
    """All problems as one message; the first :data:`MOST_PROBLEMS`."""
    left = len(problems) - MOST_PROBLEMS
    more = [f"and {left} more problems"] if left > 0 else []
    return "\n".join([*problems[:MOST_PROBLEMS], *more])


def names_below(folder: Path) -> Iterator[str]:
    """Relative paths of all files and links to folders below ``folder``."""
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        links = (name for name in folders if (here / name).is_symlink())
        for name in chain(files, links):
            if not name.startswith(IGNORED):
                yield str((here / name).relative_to(folder))
