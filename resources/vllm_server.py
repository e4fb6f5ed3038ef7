"""vLLM as a process of its own, as Dagster sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dagster import ConfigurableResource

from tts_assets.core.processes import LOOPBACK, free_port
from tts_assets.core.supervisor import Patience, Server


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
        port = self.port or free_port()
        patience = Patience(self.start_seconds, self.restarts, self.grace_seconds)
        command = self.command(port, arguments)
        with Server(command, f"http://{LOOPBACK}:{port}", patience, log).running() as server:
            server.wait_until_healthy()
            yield server

    def command(self, port: int, arguments: Sequence[str]) -> list[str]:
        address = ["--host", LOOPBACK, "--port", str(port)]
        return [self.python or sys.executable, "-m", self.module, *arguments, *address]
