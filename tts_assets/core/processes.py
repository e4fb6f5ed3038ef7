"""Process trees that end completely, supervised servers, free ports, and reminders while waiting.

torchrun starts each worker in a separate session. If torchrun dies, neither ``killpg`` nor a signal
to the direct child reaches the workers. Each launch therefore sets a marker in its environment. All
descendants inherit it, and are found by it. A launch inside a launch has both markers, so that the
outer one ends it as well.

Run as a program, this file is the watchdog of a launch. It ends the launch when the process that
started both dies, even by SIGKILL.

A supervised server (:class:`Server`) is any command that answers ``GET /health``: it is started,
restarted when it dies, and always ended.

pebble is not used: it ends the workers of its own pools, not descendants in other sessions, and
nothing if its own process is killed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import psutil

MARKER = "TTS_LAUNCH_ID"
# vLLM renames its processes. setproctitle then overwrites the environment that other processes see,
# and with it the marker, unless this variable is set.
KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
SETTLE_SECONDS = 1.0  # until exec, a forked child shows the environment of its parent
POLL_SECONDS = 0.2
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0  # seconds before a restart; doubled for each one
SETTLED_SECONDS = 60.0  # healthy for this long resets the count of restarts


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


class ServerDied(RuntimeError):
    """The server did not start, or died too often. The message has the end of its log."""


@dataclass(frozen=True)
class Patience:
    """Time limits: ``start_seconds`` until a start is healthy, ``grace_seconds`` until SIGKILL.

    After ``restarts`` restarts in a row the server counts as failed.
    """

    start_seconds: float = 600.0
    restarts: int = 3
    grace_seconds: float = 30.0


class Server:
    """A supervised server. ``url`` is the same after a restart."""

    def __init__(
        self,
        command: Sequence[str],
        url: str,
        patience: Patience,
        log: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``environment`` None: the environment of this process."""
        self.command, self.url, self.patience, self.log = list(command), url, patience, log
        self.environment = os.environ if environment is None else environment
        self.launch_id = uuid.uuid4().hex
        self.restarted = 0
        self.failure: str | None = None  # why it is not restarted any more
        self.last_lines: list[str] = []
        self._stopping = threading.Event()
        self._started = time.monotonic()
        self._healthy_since = float("inf")
        self._thread = threading.Thread(target=self._keep_running, name="supervisor", daemon=True)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Start the server, and end it with the block. It also ends if this process is killed.

        The server may not be healthy yet; see :meth:`wait_until_healthy`.
        """
        with watchdog(self.launch_id, self.patience.grace_seconds, ()):
            try:
                self._thread.start()
                yield self
            finally:
                self._stopping.set()
                end_processes(self.launch_id, self.patience.grace_seconds)
                self._thread.join()

    def healthy(self) -> bool:
        """Whether ``/health`` answers with status 200 within 5 s."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def check(self) -> bool:
        """Whether the server is healthy. Raises :class:`ServerDied` if it is not restarted any
        more."""
        if self.healthy():
            self._healthy_since = min(self._healthy_since, time.monotonic())
            return True
        seconds = self.patience.start_seconds
        late = self._healthy_since == float("inf") and time.monotonic() - self._started > seconds
        if late and self.failure is None:
            self.failure = f"was not healthy after {seconds:g} s"
        if self.failure is not None:
            raise ServerDied(
                f"{' '.join(self.command)} {self.failure}. The end of its log:\n"
                + "\n".join(self.last_lines)
            )
        return False

    def wait_until_healthy(self) -> None:
        """Wait until the server is healthy. Raises :class:`ServerDied`."""
        while not self.check():
            time.sleep(POLL_SECONDS)

    def _keep_running(self) -> None:
        deaths, backoff = 0, FIRST_BACKOFF
        while not self._stopping.is_set():
            self._started, self._healthy_since = time.monotonic(), float("inf")
            status = self._run_once()
            if self._stopping.is_set():
                return
            if time.monotonic() - self._healthy_since > SETTLED_SECONDS:
                deaths, backoff = 0, FIRST_BACKOFF
            deaths += 1
            if deaths > self.patience.restarts:
                self.failure = f"ended with status {status}, {deaths} times in a row"
                return
            self.log(f"the server ended with status {status}; starting again in {backoff:g} s")
            self._stopping.wait(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)
            self.restarted += 1

    def _run_once(self) -> int:
        process = subprocess.Popen(
            self.command,
            env={**self.environment, **KEEP_ENVIRONMENT, MARKER: marked(self.launch_id)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        if self._stopping.is_set():  # running() may have looked before this one was there
            process.kill()
        assert process.stdout is not None
        with process.stdout as lines:
            # Its children inherit the pipe: a reader of the whole pipe would wait for an orphan.
            reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
            reader.start()
            status = process.wait()
            if not self._stopping.is_set():
                end_processes(self.launch_id, 0)  # an engine whose server is gone
            reader.join()
        return status

    def _read(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.last_lines = [*self.last_lines[-19:], line.rstrip("\n")]
            self.log(self.last_lines[-1])


if __name__ == "__main__":
    _watch(sys.argv[1], float(sys.argv[2]))
