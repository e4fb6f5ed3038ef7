"""Ending a whole process tree for certain, also the members that left the process group.

torchrun starts every worker in a session of its own, so neither killpg nor a signal to the
direct child reaches them when torchrun itself is gone. Each launch therefore carries a marker in
its environment, which all descendants inherit, and which finds them wherever they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

MARKER = "TTS_LAUNCH_ID"


def marked_processes(launch_id: str) -> list[psutil.Process]:
    """Every living process that inherited ``launch_id``; zombies are dead already."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARKER) == launch_id:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            continue
    return found


def end_processes(launch_id: str, grace_seconds: float) -> None:
    """SIGTERM to all of the launch, SIGKILL to what is left after the grace period."""
    for process in marked_processes(launch_id):
        _signal(process.terminate)
    deadline = time.monotonic() + grace_seconds
    while marked_processes(launch_id) and time.monotonic() < deadline:
        time.sleep(0.1)
    while left := marked_processes(launch_id):  # a dying parent may just have forked
        for process in left:
            _signal(process.kill)
        time.sleep(0.05)


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and all its descendants; shared pages count each time."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        return total
    return total


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
