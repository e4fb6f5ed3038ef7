"""What is known of a corpus' files without reading them: paths, sizes, times, who may read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.readers.entry import Entry


def survey(entries: Iterable[Entry | SetAside], root: Path) -> tuple[str, dict[str, str]]:
    """Digest of all that a reader found and of the state of the audio it names; and the states of
    the audio that a walk through the corpus ``root`` does not see, by path, sorted.

    The digest sees audio outside the corpus' folder, too, and overlooks files that are no part of
    it. The order of the entries does not count.
    """
    found, outside = [], {}
    for item in entries:
        state = ""
        if isinstance(item, Entry):
            state = file_state(item.file)
            if root not in item.file.parents:
                outside[str(item.file)] = state
        line = f"{item} {state}".encode(errors="surrogateescape")
        found.append(hashlib.sha256(line).digest())
    return hashlib.sha256(b"".join(sorted(found))).hexdigest(), dict(sorted(outside.items()))


def file_state(file: os.DirEntry[str] | Path) -> str:
    """What changes with a file's content, and with who may read it; or why there is no telling."""
    try:
        stat = file.stat()
    except OSError as error:
        return f"errno {error.errno}"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_mode} {stat.st_uid} {stat.st_gid}"


def walk(root: Path, after: str = "") -> Iterator[tuple[str, str]]:
    """Relative path and state of every file below ``root`` (or of the one file ``root``).

    Folders' entries come sorted by name, so that a walk which was broken off goes on behind the
    path ``after``. Links to folders are followed, but not in circles.
    """
    if root.is_file():
        if not after:
            yield root.name, file_state(root)
        return
    yield from _walk(str(root), "", after.split("/") if after else [], (os.path.realpath(root),))


def _walk(
    folder: str, prefix: str, after: list[str], above: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """``after``: the parts of the path below ``folder``; ``above``: the folders on the way."""
    try:
        with os.scandir(folder) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield prefix.rstrip("/"), f"errno {error.errno}"
        return
    first, *rest = after or [""]
    for entry in here:
        name = entry.name
        if name < first or (name == first and not rest):
            continue
        if not entry.is_dir():
            yield prefix + name, file_state(entry)
            continue
        real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{name}"
        if real not in above:
            below = rest if name == first else []
            yield from _walk(entry.path, f"{prefix}{name}/", below, (*above, real))
