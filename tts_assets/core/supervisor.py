"""A supervised server process: started, restarted when it dies, and always ended.

The server is any command that answers ``GET /health``. The module does not depend on Dagster.
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
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0  # seconds before a restart; doubled for each one
SETTLED_SECONDS = 60.0  # healthy for this long resets the count of restarts


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
