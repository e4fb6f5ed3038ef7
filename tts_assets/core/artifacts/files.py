"""Files of artifacts: digests, flushing, and writing that leaves the old or the new."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ASIDE = re.compile(r"\..+\.\d+\.\d+\.tmp")
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how polars and other Rust libraries name errno
NEARLY_FULL = 1 << 20  # bytes left; soundfile and sqlite name no errno, and torch not always


class ArtifactError(RuntimeError):
    """An artifact is missing, damaged, or does not fit: the message names it and the remedy."""


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file and folder below ``root``: after the rename all of it is on the disk."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_file() or path.is_dir():
            fsync(path)
    fsync(root)


@contextmanager
def disk_full_named(folder: Path) -> Iterator[None]:
    """Turn any error that a full disk below ``folder`` causes into one that says so."""
    try:
        yield
    except Exception as error:
        told = OS_ERROR.search(str(error))
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number not in NO_ROOM and shutil.disk_usage(folder).free >= NEARLY_FULL:
            raise
        raise ArtifactError(
            f"no room left to write below {folder} ({error}); free some, or set project.storage "
            "to a folder on another disk, and start again: nothing half-written was published"
        ) from error


def remove_asides(root: Path) -> None:
    """Remove what :func:`written_aside` left below ``root`` when its process was killed. For a
    folder that nobody writes to any more."""
    for path in sorted(root.rglob(".*.tmp")):
        if ASIDE.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` when the block succeeds.

    Works for a file or a folder. On an error nothing is left behind and ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        yield aside
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
