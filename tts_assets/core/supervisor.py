"""A server as a process of its own: started, watched, started again when it dies, always ended.

Plain Python, for programs as for Dagster: the server is any command that answers ``/health``.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from tts_assets.core.processes import KEEP_ENVIRONMENT, MARKER, end_processes, marked, watchdog

POLL_SECONDS = 0.2
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0  # seconds before a restart; doubled each time
SETTLED_SECONDS = 60.0  # who was healthy for so long starts counting restarts anew


class ServerDied(RuntimeError):
    """The server did not come up, or died too often; the message has the end of its log."""


@dataclass(frozen=True)
class Patience:
    """``start_seconds`` until a start is healthy, ``restarts`` in a row before it is given up,
    ``grace_seconds`` between SIGTERM and SIGKILL."""

    start_seconds: float = 600.0
    restarts: int = 3
    grace_seconds: float = 30.0


class Server:
    """A supervised server; ``url`` stays the same when it is started again."""

    def __init__(
        self,
        command: Sequence[str],
        url: str,
        patience: Patience,
        log: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``environment`` None: that of this process."""
        self.command, self.url, self.patience, self.log = list(command), url, patience, log
        self.environment = os.environ if environment is None else environment
        self.launch_id = uuid.uuid4().hex
        self.restarted = 0
        self.failure: str | None = None  # why it will not come back
        self.last_lines: list[str] = []
        self._stopping = threading.Event()
        self._started = time.monotonic()
        self._healthy_since = float("inf")
        self._thread = threading.Thread(target=self._keep_running, name="supervisor", daemon=True)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Started, though not yet healthy; nothing of it survives, not even a SIGKILL of us."""
        with watchdog(self.launch_id, self.patience.grace_seconds, ()):
            try:
                self._thread.start()
                yield self
            finally:
                self._stopping.set()
                end_processes(self.launch_id, self.patience.grace_seconds)
                self._thread.join()

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def check(self) -> bool:
        """Whether it is healthy now. Raises :class:`ServerDied` if it will not be any more."""
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
        """Return when it answers: after a start, or after a restart. Raises ServerDied."""
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
            # Its children inherit the pipe: who reads to its end would wait for an orphan.
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
