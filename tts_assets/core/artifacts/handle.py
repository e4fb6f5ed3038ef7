"""The manifest of an artifact, the typed handles that open it, and its files.

Files have digests, and are written by atomic replacement with fsync.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

from tts_assets.core.config import Config, ConfigError, digest_of

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ASIDE = re.compile(r"\..+\.\d+\.\d+\.tmp")
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # errno in messages of polars and other Rust libraries
NEARLY_FULL = 1 << 20  # bytes free; errors of soundfile, sqlite and sometimes torch have no errno
MANIFEST = "manifest.json"
UNPARTITIONED = "all"
THREADS = 4  # files that are read at once; SHA-256 releases the GIL
MOST_PROBLEMS = 10  # in one message
IGNORED = ".nfs"  # NFS clients rename a file that is deleted while it is open


class ArtifactError(RuntimeError):
    """An artifact is missing, damaged or of the wrong kind. The message has its path and a
    remedy."""


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file and folder below ``root``, so that a later rename publishes whole files."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_file() or path.is_dir():
            fsync(path)
    fsync(root)


def apply_umask(root: Path) -> None:
    """Give a file, or a folder and everything below it, at least the permissions of the umask.

    Some libraries write through private temporary files: safetensors leaves mode 0600 under the
    umask 022. Permissions are only added, and symbolic links are not followed.
    """
    granted = 0o777 & ~_umask()
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            wanted = granted
        elif stat.S_ISREG(status.st_mode):
            wanted = granted & 0o666
        else:
            continue
        if wanted & ~status.st_mode:
            path.chmod(stat.S_IMODE(status.st_mode) | wanted)


def _umask() -> int:
    """The umask of this process. ``os.umask`` would change it, also for other threads."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^Umask:\s*([0-7]+)$", status, re.MULTILINE)
    assert found is not None, "Linux 4.7 and later show it"
    return int(found[1], 8)


@contextmanager
def disk_full_named(folder: Path) -> Iterator[None]:
    """Raise :class:`ArtifactError` instead of any error that a full disk below ``folder``
    causes."""
    try:
        yield
    except Exception as error:
        named = OS_ERROR.search(str(error))
        number = int(named[1]) if named else getattr(error, "errno", None)
        if number not in NO_ROOM and shutil.disk_usage(folder).free >= NEARLY_FULL:
            raise
        raise ArtifactError(
            f"no room left to write below {folder} ({error}); free some space, or set "
            "project.storage to a folder on another disk, and start again: no partial result "
            "was published"
        ) from error


def remove_temporary_files(root: Path) -> None:
    """Remove temporary files that :func:`atomic_write` left below ``root`` in a killed process.

    No process may be writing below ``root``.
    """
    for path in sorted(root.rglob(".*.tmp")):
        if ASIDE.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` when the block succeeds.

    The block creates a file or a folder at the temporary path. It gets the permissions of the umask
    and is flushed before the rename. If the block raises, the temporary path is removed and
    ``path`` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        yield aside
        apply_umask(aside)
        fsync_tree(aside) if aside.is_dir() else fsync(aside)
        if aside.is_dir() and path.is_dir():
            shutil.rmtree(path)
        aside.replace(path)
        fsync(path.parent)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


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
