"""Ending a whole process tree for certain, also the members that left the process group.

torchrun starts every worker in a session of its own, so neither killpg nor a signal to the
direct child reaches them when torchrun itself is gone. Each launch therefore carries a marker in
its environment, which all descendants inherit, and which finds them wherever they are. What is
launched from within a launch carries both markers: the outer launch ends it, too.

Run as a program this file is the watchdog of a launch: it ends the launch when the Dagster
process that started both is gone, even by SIGKILL.

Free ports of this machine.

Who waits says so, again and again: a silent run is taken for one that hangs (``stuck_runs``).
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
# vLLM's processes rename themselves; setproctitle then writes over the environment that is seen
# from outside, and the marker with it, unless it is told not to.
KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
SETTLE_SECONDS = 1.0  # a child just forked shows its parent's environment until it has exec'd


def marked(launch_id: str) -> str:
    """The marker of a launch that this process makes: its own, and those that it inherited."""
    return "/".join(filter(None, (os.environ.get(MARKER), launch_id)))


def marked_processes(launch_id: str) -> list[psutil.Process]:
    """Every living process that inherited ``launch_id``; zombies are dead already."""
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
    """SIGTERM to all of the launch, SIGKILL to what is left after the grace period.

    ``root`` (torchrun) gets its SIGTERM when it is alone: it would give the others 30 seconds,
    however long the grace is, and it ends by itself when they have ended.
    """
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    while (left := marked_processes(launch_id)) and time.monotonic() < deadline:
        for process in left:
            if process.pid not in asked and (process.pid != root or len(left) == 1):
                asked.add(process.pid)
                _signal(process.terminate)
        time.sleep(0.1)
    while left := marked_processes(launch_id):  # a dying parent may just have forked
        for process in left:
            _signal(process.kill)
        time.sleep(0.05)


def reap(process: subprocess.Popen[Any], grace_seconds: float) -> None:
    """Wait for a process that was asked to end; kill it after the grace period."""
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def watchdog(launch_id: str, grace_seconds: float, files: Sequence[int]) -> Iterator[None]:
    """End the launch's processes if this process dies; hold ``files`` (locks) open until then."""
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
    sys.stdin.buffer.read()  # ends when the other end is closed, by whatever death
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
    """A port that nobody listens on at loopback now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


AGAIN_SECONDS = 300.0  # twice within the shortest [alerts] end_stuck_minutes


class Reminder:
    """Of saying what one waits for: due at once, and every :data:`AGAIN_SECONDS` from then on."""

    def __init__(self) -> None:
        self._next = time.monotonic()

    def due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + AGAIN_SECONDS
        return True


if __name__ == "__main__":
    _watch(sys.argv[1], float(sys.argv[2]))
