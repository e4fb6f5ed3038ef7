"""Records which files are read, by inotify, so that no read is missed."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_ACCESS = 1  # bytes of a file were read
HEADER = struct.Struct("iIII")  # watch, mask, cookie, length of the name


@contextmanager
def reads_below(root: Path) -> Iterator[set[str]]:
    """Yield a set that holds the names of the files read below ``root`` once the block is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    names: set[str] = set()
    try:
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            watch = libc.inotify_add_watch(descriptor, os.fsencode(folder), IN_ACCESS)
            assert watch >= 0, os.strerror(ctypes.get_errno())
        yield names
        while events := _pending(descriptor):
            offset = 0
            while offset < len(events):
                _, mask, _, length = HEADER.unpack_from(events, offset)
                offset += HEADER.size + length
                name = os.fsdecode(events[offset - length : offset].rstrip(b"\0"))
                if mask & IN_ACCESS and name and not (root / name).is_dir():
                    names.add(name)
    finally:
        os.close(descriptor)


def _pending(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""
