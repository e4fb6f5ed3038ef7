"""Leases of the GPUs of one machine for the Dagster runs on it.

A lease locks one file per GPU. The kernel releases the lock when the last process that has the file
open ends, so that a killed run needs no cleanup.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tts_assets.core.processes import Reminder

WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Lease:
    """Leased devices, and the file descriptors that must stay open while they are used."""

    devices: tuple[str, ...]
    files: tuple[int, ...]


def lease_folder() -> Path:
    """The folder of the lock files, shared by all runs of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"tts-assets-gpus-{os.getuid()}"


@contextmanager
def lease(
    count: int, devices: Sequence[str], on_wait: Callable[[str], None], folder: Path | None = None
) -> Iterator[Lease]:
    """Hold ``count`` of ``devices`` while the block lasts. ``on_wait`` gets messages while waiting.

    Only the first waiting run collects devices that become free, until it has enough. A run that
    needs all GPUs is therefore not overtaken forever by smaller ones.
    """
    if count == 0:
        yield Lease((), ())
        return
    folder = folder or lease_folder()
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, int] = {}
    try:
        with locked(folder / "line", lambda: on_wait(f"waiting in line for {count} GPUs")):
            _take(count, devices, on_wait, folder, held)
        yield Lease(tuple(d for d in devices if d in held), tuple(held.values()))
    finally:
        for file in held.values():
            os.close(file)


def _take(
    count: int,
    devices: Sequence[str],
    on_wait: Callable[[str], None],
    folder: Path,
    held: dict[str, int],
) -> None:
    """Lock ``count`` devices in their order, as they become free."""
    reminder = Reminder()
    while True:
        for device in devices:
            if device not in held and len(held) < count:
                file = _try_lock(folder / f"gpu-{device}")
                if file is not None:
                    held[device] = file
        if len(held) == count:
            return
        if reminder.due():
            on_wait(f"waiting for {count} GPUs: {len(held)} of {len(devices)} are free")
        time.sleep(WAIT_SECONDS)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold the lock of the file ``path``; yields its descriptor.

    While another process has the lock, ``on_wait`` is called at once and every few minutes. Waiting
    is polling, so that Dagster can interrupt it.
    """
    reminder = Reminder()
    while (file := _try_lock(path)) is None:
        if reminder.due():
            on_wait()
        time.sleep(WAIT_SECONDS)
    try:
        yield file
    finally:
        os.close(file)


def _try_lock(path: Path) -> int | None:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
