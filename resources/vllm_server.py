"""The vLLM server as a Dagster resource."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dagster import ConfigurableResource

from tts_assets.core.processes import LOOPBACK, Patience, Server, free_port


class VllmServer(ConfigurableResource):
    """Runs a server program that accepts ``--host`` and ``--port``, and answers ``/health``.

    ``python`` is the interpreter of an environment with vLLM; None: that of Dagster. ``port`` 0
    selects a free port. The server ends with the block, and also if Dagster is killed.
    """

    module: str = "tts_assets.serving.server"
    python: str | None = None
    port: int = 0
    start_seconds: float = 600.0
    restarts: int = 3
    grace_seconds: float = 30.0

    @contextmanager
    def serve(self, arguments: Sequence[str], log: Callable[[str], None]) -> Iterator[Server]:
        """Run the server while the block lasts. It is healthy at the start of the block.

        ``log`` gets the lines of its output. Raises :class:`ServerDied` if it does not start.
        """
        port = self.port or free_port()
        patience = Patience(self.start_seconds, self.restarts, self.grace_seconds)
        command = self.command(port, arguments)
        with Server(command, f"http://{LOOPBACK}:{port}", patience, log).running() as server:
            server.wait_until_healthy()
            yield server

    def command(self, port: int, arguments: Sequence[str]) -> list[str]:
        """The command line of the server."""
        address = ["--host", LOOPBACK, "--port", str(port)]
        return [self.python or sys.executable, "-m", self.module, *arguments, *address]
