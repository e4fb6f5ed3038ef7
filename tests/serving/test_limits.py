"""Limits before authentication, tested at the socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.scripted_server import ScriptedServer, scripted_server
from tts_assets.serving import requests
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.requests import MAX_HEADER_BYTES, known_hosts
from tts_assets.serving.synthesis import Synthesizer

KEY = "a-key-for-the-tests"


@pytest.fixture
def server(synthesizer: Synthesizer) -> Iterator[ScriptedServer]:
    with scripted_server(synthesizer, ServerConfig(max_connections=8), KEY) as running:
        yield running


def answer_of(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def healthy(server: ScriptedServer) -> float:
    """Seconds until ``/health`` answers."""
    started = time.monotonic()
    assert server.http.get("/health", timeout=5).status_code == 200
    return time.monotonic() - started


@pytest.mark.parametrize(
    "start",
    [
        b"GET /health HTTP/1.1\r\nX: ",
        b"GET /",
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["header", "path", "chunk extension"],
)
def test_endless_header_is_cut_off(server: ScriptedServer, start: bytes) -> None:
    """20 MB are offered. The server closes the connection and answers others meanwhile."""
    connection = server.connect(start)
    sent = 0
    try:
        while sent < 20 << 20:
            sent += connection.send(b"a" * 65_536)
            if sent % (4 << 20) < 65_536:
                assert healthy(server) < 2
    except (ConnectionError, TimeoutError):
        pass
    assert sent < 16 << 20  # what the buffers of both sockets hold
    assert healthy(server) < 2


def test_many_headers_are_rejected(server: ScriptedServer) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * (MAX_HEADER_BYTES // 4)
    assert answer_of(server.connect(head)).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("data", [b"", b"GET /health HTTP/1.1\r\nHost: a\r\n"])
def test_slow_headers_end(
    server: ScriptedServer, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(requests.PHASE_SECONDS, "headers", 0.5)
    connection = server.connect(data)
    started = time.monotonic()
    assert answer_of(connection).startswith(b"HTTP/1.1 408")
    assert 0.3 < time.monotonic() - started < 5


def test_header_time_is_not_extended_by_more_bytes(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(requests.PHASE_SECONDS, "headers", 0.5)
    connection = server.connect(b"GET /health HTTP/1.1\r\n")
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        while time.monotonic() - started < 5:
            connection.sendall(b"A: b\r\n")
            time.sleep(0.1)


def test_second_request_has_a_header_time_too(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(requests.PHASE_SECONDS, "headers", 0.5)
    connection = server.connect(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    time.sleep(0.8)  # idle between two requests: this is allowed
    connection.sendall(b"GET /health HTTP/1.1\r\nHost")
    assert b"HTTP/1.1 408" in answer_of(connection)


@pytest.mark.parametrize(("key", "phase"), [(KEY, "body"), ("wrong", "drain")])
def test_slow_body_ends(
    server: ScriptedServer, key: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(requests.PHASE_SECONDS, phase, 0.5)  # type: ignore[misc]
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
    connection = server.connect(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    started = time.monotonic()
    answer = answer_of(connection)
    assert time.monotonic() - started < 5
    assert (b"401" in answer) == (key == "wrong")


def test_new_connection_closes_the_oldest_idle_one(server: ScriptedServer) -> None:
    """Half-open connections do not lock others out."""
    half_open = [server.connect(b"GET /health HTTP/1.1\r\n") for _ in range(8)]
    assert healthy(server) < 2
    assert answer_of(half_open[0]) == b""
    half_open[-1].settimeout(0.3)
    with pytest.raises(TimeoutError):
        half_open[-1].recv(1)


def test_connections_are_limited_while_all_are_busy(server: ScriptedServer) -> None:
    server.engine.step_seconds = 0.2
    body = b'{"model": "tiny", "input": "one", "seed": 1}'
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
    request = (
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    busy = [server.connect(request + body) for _ in range(8)]
    while server.engine.running < 8:
        time.sleep(0.05)
    assert answer_of(server.connect()).startswith(b"HTTP/1.1 503")
    for connection in busy:
        connection.close()


def test_client_that_does_not_read_is_disconnected(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop notifies the protocol when the send buffer is full, and when it is not."""
    monkeypatch.setattr(requests, "STALL_SECONDS", 0.5)
    stalled, slow = (server.connect(b"GET /health HTTP/1.1\r\n") for _ in range(2))
    while len(server.server.server_state.connections) < 2:
        time.sleep(0.02)
    ports = {c.client[1]: c for c in server.server.server_state.connections}  # type: ignore[index]
    loop = ports[stalled.getsockname()[1]].loop  # type: ignore[union-attr]
    for connection in (stalled, slow):
        loop.call_soon_threadsafe(ports[connection.getsockname()[1]].pause_writing)
    loop.call_soon_threadsafe(ports[slow.getsockname()[1]].resume_writing)
    started = time.monotonic()
    assert answer_of(stalled) == b""
    assert 0.3 < time.monotonic() - started < 5
    slow.settimeout(0.5)
    with pytest.raises(TimeoutError):
        slow.recv(1)


def get(server: ScriptedServer, host: str, **headers: str) -> httpx.Response:
    return server.http.get("/v1/models", headers={"Host": host, **headers})


def test_hosts_are_checked_without_a_key(synthesizer: Synthesizer) -> None:
    """A web page whose name resolves to 127.0.0.1 (DNS rebinding) is rejected."""
    with scripted_server(synthesizer, ServerConfig(allowed_hosts="tts.local, b.example")) as server:
        for host in (
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil",
        ):
            answer = get(server, host)
            assert answer.status_code == 403, host
            assert answer.json()["error"]["code"] == "host_not_allowed"
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "192.168.1.4:8000", "TTS.local:1"):
            assert get(server, host).status_code == 200, host
        assert server.http.get("/health", headers={"Host": "evil.example"}).status_code == 200


def test_hosts_are_not_checked_with_a_key(server: ScriptedServer) -> None:
    answer = get(server, "any.example", Authorization=f"Bearer {KEY}")
    assert answer.status_code == 200


def test_known_hosts() -> None:
    hosts = known_hosts("0.0.0.0", " A.example ,,b.example")
    assert {"localhost", "0.0.0.0", "a.example", "b.example"} <= hosts and "" not in hosts
