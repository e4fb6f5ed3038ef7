"""vLLM as a process of its own: started, watched, started again when it dies, always ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dagster import ConfigurableResource

from resources.ports import LOOPBACK, free_port
from resources.processes import KEEP_ENVIRONMENT, MARKER, end_processes, watchdog

POLL_SECONDS = 0.2
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0  # seconds before a restart; doubled each time
SETTLED_SECONDS = 60.0  # who was healthy for so long starts counting restarts anew


class ServerDied(RuntimeError):
    """The server did not come up, or died too often; the message has the end of its log."""


class VllmServer(ConfigurableResource):
    """Runs a server program that takes ``--host`` and ``--port`` and answers ``/health``.

    ``python`` is the interpreter of the environment that has vLLM; None: this one. ``port`` 0: a
    free one. Nothing of it survives: not the end of the ``with``, not a killed Dagster.
    """

    module: str = "tts_assets.serving.server"
    python: str | None = None
    port: int = 0
    start_seconds: float = 600.0
    restarts: int = 3
    grace_seconds: float = 30.0

    @contextmanager
    def serve(self, arguments: Sequence[str], log: Callable[[str], None]) -> Iterator[Server]:
        """The server while the ``with`` lasts, healthy when it begins. ``log`` gets its lines.

        Raises :class:`ServerDied` if it does not come up, or was not up when the ``with`` ended.
        """
        launch_id = uuid.uuid4().hex
        server = Server(self, launch_id, arguments, log)
        with watchdog(launch_id, self.grace_seconds, ()):
            try:
                server.start()
                server.wait_until_healthy()
                yield server
            finally:
                server.stop()

    def command(self, port: int, arguments: Sequence[str]) -> list[str]:
        address = ["--host", LOOPBACK, "--port", str(port)]
        return [self.python or sys.executable, "-m", self.module, *arguments, *address]


class Server:
    """A running server; ``url`` stays the same when it is started again."""

    def __init__(
        self,
        resource: VllmServer,
        launch_id: str,
        arguments: Sequence[str],
        log: Callable[[str], None],
    ) -> None:
        self.resource, self.launch_id, self.log = resource, launch_id, log
        port = resource.port or free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        self.command = resource.command(port, arguments)
        self.restarted = 0
        self.failure: str | None = None  # why it will not come back
        self.last_lines: list[str] = []
        self._stopping = threading.Event()
        self._healthy_since = float("inf")
        self._thread = threading.Thread(target=self._keep_running, name="vllm-server", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End all of its processes: SIGTERM, the grace period, SIGKILL."""
        self._stopping.set()
        end_processes(self.launch_id, self.resource.grace_seconds)
        self._thread.join()

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_until_healthy(self) -> None:
        """Return when it answers: after a start, or after a restart. Raises ServerDied."""
        deadline = time.monotonic() + self.resource.start_seconds
        while not self.healthy():
            if self.failure is None and time.monotonic() > deadline:
                self.failure = f"was not healthy after {self.resource.start_seconds:g} s"
            if self.failure is not None:
                raise ServerDied(
                    f"{' '.join(self.command)} {self.failure}. The end of its log:\n"
                    + "\n".join(self.last_lines)
                )
            time.sleep(POLL_SECONDS)
        self._healthy_since = min(self._healthy_since, time.monotonic())

    def _keep_running(self) -> None:
        deaths, backoff = 0, FIRST_BACKOFF
        while not self._stopping.is_set():
            self._healthy_since = float("inf")
            status = self._run_once()
            if self._stopping.is_set():
                return
            if time.monotonic() - self._healthy_since > SETTLED_SECONDS:
                deaths, backoff = 0, FIRST_BACKOFF
            deaths += 1
            if deaths > self.resource.restarts:
                self.failure = f"ended with status {status}, {deaths} times in a row"
                return
            self.log(f"the server ended with status {status}; starting again in {backoff:g} s")
            self._stopping.wait(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)
            self.restarted += 1

    def _run_once(self) -> int:
        process = subprocess.Popen(
            self.command,
            env={**os.environ, **KEEP_ENVIRONMENT, MARKER: self.launch_id},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        if self._stopping.is_set():  # stop() may have looked before this one was there
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
