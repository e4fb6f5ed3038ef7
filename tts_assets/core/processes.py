"""Process trees that end completely, free ports, and reminders while waiting.

torchrun starts each worker in a separate session. If torchrun dies, neither ``killpg`` nor a signal
to the direct child reaches the workers. Each launch therefore sets a marker in its environment. All
descendants inherit it, and are found by it. A launch inside a launch has both markers, so that the
outer one ends it as well.

Run as a program, this file is the watchdog of a launch. It ends the launch when the process that
started both dies, even by SIGKILL.

pebble is not used: it ends the workers of its own pools, not descendants in other sessions, and
nothing if its own process is killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

MARKER = "TTS_LAUNCH_ID"
# vLLM renames its processes. setproctitle then overwrites the environment that other processes see,
# and with it the marker, unless this variable is set.
KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
SETTLE_SECONDS = 1.0  # until exec, a forked child shows the environment of its parent


def marked(launch_id: str) -> str:
    """The value of :data:`MARKER` for a launch: inherited ids and ``launch_id``."""
    return "/".join(filter(None, (os.environ.get(MARKER), launch_id)))


def marked_processes(launch_id: str) -> list[psutil.Process]:
    """All processes that inherited ``launch_id``, except zombies."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if launch_id in process.environ().get(MARKER, "").split("/"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            continue
    return found


def end_processes(launch_id: str, grace_seconds: float, root: int | None = None) -> None:
    """Send SIGTERM to all processes of a launch, and SIGKILL after the grace period.

    ``root`` (torchrun) gets SIGTERM last: it would kill its workers after a fixed 30 s, and it ends
    by itself after them.
    """
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    while (left := marked_processes(launch_id)) and time.monotonic() < deadline:
        for process in left:
            if process.pid not in asked and (process.pid != root or len(left) == 1):
                asked.add(process.pid)
                _signal(process.terminate)
        time.sleep(0.1)
    while left := marked_processes(launch_id):  # a parent may have forked just before it ended
        for process in left:
            _signal(process.kill)
        time.sleep(0.05)


def reap(process: subprocess.Popen[Any], grace_seconds: float) -> None:
    """Wait for a process that was sent SIGTERM, and kill it after the grace period."""
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def watchdog(launch_id: str, grace_seconds: float, files: Sequence[int]) -> Iterator[None]:
    """End the launch if this process dies. ``files`` (locks) stay open until the launch has
    ended."""
    guard = subprocess.Popen(
        [sys.executable, __file__, launch_id, str(grace_seconds)],
        stdin=subprocess.PIPE,
        pass_fds=tuple(files),
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        yield
    finally:
        guard.stdin.close()
        guard.wait()


def _watch(launch_id: str, grace_seconds: float) -> None:
    sys.stdin.buffer.read()  # returns when the parent closes the pipe or dies
    end_processes(launch_id, grace_seconds)
    time.sleep(SETTLE_SECONDS)
    end_processes(launch_id, grace_seconds)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


AGAIN_SECONDS = 300.0  # half of the shortest [alerts] end_stuck_minutes


class Reminder:
    """Tells when to log that a process still waits: at once, then every :data:`AGAIN_SECONDS`.

    A run without log lines looks stuck to the sensor ``stuck_runs``.
    """

    def __init__(self) -> None:
        self._next = time.monotonic()

    def due(self) -> bool:
        """Whether to log now. The next reminder is due :data:`AGAIN_SECONDS` later."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + AGAIN_SECONDS
        return True


if __name__ == "__main__":
    _watch(sys.argv[1], float(sys.argv[2]))
