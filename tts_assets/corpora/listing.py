"""Whether a corpus folder changed, without reading its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.readers.entry import Entry


def listing_digest(root: Path) -> str:
    """Digest of all paths, sizes and modification times below ``root`` (or of one file)."""
    digest = hashlib.sha256()
    for path, stat in sorted(_files(root)):
        digest.update(f"{path}\0{stat[0]}\0{stat[1]}\n".encode())
    return digest.hexdigest()


def entries_digest(entries: Iterable[Entry | SetAside]) -> str:
    """Digest of all that a reader found, and of the sizes and times of the audio it names.

    It sees audio outside the corpus' folder, too, and overlooks files that are no part of it.
    The order of the entries does not count.
    """
    digest = hashlib.sha256()
    for item in sorted(hashlib.sha256(_described(item)).digest() for item in entries):
        digest.update(item)
    return digest.hexdigest()


def _described(item: Entry | SetAside) -> bytes:
    return f"{item}{_state(item)}".encode()


def _state(item: Entry | SetAside) -> str:
    if isinstance(item, SetAside):
        return ""
    try:
        stat = item.file.stat()
    except OSError as error:
        return f"\0{error.errno}"
    return f"\0{stat.st_size}\0{stat.st_mtime_ns}"


def _files(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    if root.is_file():
        stat = root.stat()
        yield root.name, (stat.st_size, stat.st_mtime_ns)
        return
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.path)
                else:
                    stat = entry.stat()
                    relative = os.path.relpath(entry.path, root)
                    yield relative, (stat.st_size, stat.st_mtime_ns)
