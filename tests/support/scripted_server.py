"""The HTTP server on a real socket, with a scripted engine instead of vLLM: it starts at once."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import uvicorn

from tts_assets.serving.api import build_app
from tts_assets.serving.async_engine import EngineUnavailable, StreamingSynthesizer
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.served_model import SynthesisError
from tts_assets.serving.server import http_server
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.serving.voices import Adapter
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import Request


class ScriptedTokenEngine:
    """Generates random codes from the seed. The tests make it slow, dead, or let it refuse."""

    positions = 1023

    def __init__(self, synthesizer: Synthesizer) -> None:
        self.vocabulary = synthesizer.prompts.vocabulary
        self.codes = 60
        self.step_seconds = 0.0  # between two tokens
        self.dead = False
        self.refusal = ""
        self.running = 0
        self.prompts: list[np.ndarray] = []
        self.adapters: list[str] = []  # of the requests

    async def generate(
        self, request: Request, sampling: SamplingConfig
    ) -> AsyncGenerator[list[int]]:
        if self.refusal:
            raise SynthesisError(self.refusal)
        self.prompts.append(request.prompt)
        self.adapters.append(request.adapter)
        self.running += 1
        try:
            random = np.random.default_rng(request.seed)
            for code in random.integers(0, 256, min(self.codes, sampling.max_tokens)):
                await asyncio.sleep(self.step_seconds)
                if self.dead:
                    raise EngineUnavailable("the engine failed during the request")
                yield [int(i) for i in self.vocabulary.ids([code])]
            yield [self.vocabulary.speech_end]
        finally:
            self.running -= 1

    def close(self) -> None:
        self.dead = True


class PolicyTokenEngine(ScriptedTokenEngine):
    """Generates with the synthesizer's own model in this process."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        super().__init__(synthesizer)
        self.engine = synthesizer.engine

    async def generate(
        self, request: Request, sampling: SamplingConfig
    ) -> AsyncGenerator[list[int]]:
        self.prompts.append(request.prompt)
        for token in self.engine.stream(request, sampling):
            yield [token]


class ScriptedServer:
    """A running server: its address, its engines (a new one after each failure), and clients."""

    def __init__(self, server: uvicorn.Server, engines: list[ScriptedTokenEngine]) -> None:
        self.server, self.engines = server, engines
        self.exited = False

    @property
    def engine(self) -> ScriptedTokenEngine:
        return self.engines[-1]

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def connect(self, data: bytes = b"") -> socket.socket:
        """A plain connection on which ``data`` was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(data)
        return connection

    def wait_idle(self, seconds: float = 5) -> None:
        """Wait until no request is in progress, in the server or in the engine."""
        deadline = time.monotonic() + seconds
        while self.engine.running or "tts_busy 0.0" not in self.http.get("/metrics").text:
            assert time.monotonic() < deadline, "a request is still in progress"
            time.sleep(0.05)


@contextmanager
def scripted_server(
    synthesizer: Synthesizer,
    config: ServerConfig | None = None,
    key: str = "",
    engine: type[ScriptedTokenEngine] = ScriptedTokenEngine,
    adapters: Sequence[Adapter] = (),
) -> Iterator[ScriptedServer]:
    """Run the server in a thread, on a free port of 127.0.0.1."""
    config = (config or ServerConfig()).model_copy(update={"port": 0})
    engines: list[ScriptedTokenEngine] = []

    def start_engine() -> ScriptedTokenEngine:
        engines.append(engine(synthesizer))
        return engines[-1]

    def open_model(
        folder: Path, config: ServerConfig, on_engine_exit: object
    ) -> StreamingSynthesizer:
        return StreamingSynthesizer(synthesizer, start_engine, exited, adapters)

    def exited() -> None:
        running.exited = True

    app = build_app(Path(), config, key, exited, open_model)
    running = ScriptedServer(http_server(app, config), engines)
    thread = threading.Thread(target=running.server.run, daemon=True)
    positions = synthesizer.positions
    thread.start()
    try:
        while not running.server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield running
    finally:
        running.server.should_exit = running.server.force_exit = True
        thread.join(10)
        synthesizer.positions = positions
