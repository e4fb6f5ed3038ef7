"""Whether a corpus folder changed, without reading its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


def listing_digest(root: Path) -> str:
    """Digest of all paths, sizes and modification times below ``root`` (or of one file)."""
    digest = hashlib.sha256()
    for path, stat in sorted(_files(root)):
        digest.update(f"{path}\0{stat[0]}\0{stat[1]}\n".encode())
    return digest.hexdigest()


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
