"""Files of artifacts: digests, fsync, and atomic replacement."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ASIDE = re.compile(r"\..+\.\d+\.\d+\.tmp")
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # errno in messages of polars and other Rust libraries
NEARLY_FULL = 1 << 20  # bytes free; errors of soundfile, sqlite and sometimes torch have no errno


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
