"""Requests and errors of the HTTP API, in the format of OpenAI's API, and limits of requests.

All parameters are validated here: length and pattern of every string, ranges of all numbers. No
other place needs to handle infinite numbers, lone surrogates or unbounded strings.

Further limits hold before the application reads a request. :class:`BoundedProtocol` limits the HTTP
connections: size and time of the headers, time of the body, number of connections, and clients that
do not read. :class:`RequestGuard` checks the Host header, the API key and the size of the body.
Neither keeps more than some kB of a client without a key in memory.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import ConsentError
from tts_assets.serving.audio_formats import Format, require_consents
from tts_assets.serving.config import ServerConfig, ServingCard
from tts_assets.serving.served_model import SynthesisError
from tts_assets.serving.voices import DEFAULT_VOICE, NAME
from tts_assets.speechlm.config import SamplingConfig

# OpenAI's types: "invalid_request_error" for all other client errors, "server_error" from 500 on.
ERROR_TYPES = {429: "requests"}
ERROR_CODES = {404: "unknown_url", 405: "method_not_supported", 413: "request_too_large"}
# Codes of OpenAI by the kind of pydantic's error.
PROBLEM_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "string_too_long": "string_above_max_length",
    "string_too_short": "string_below_min_length",
    "json_invalid": "invalid_json",
    "int_type": "invalid_type",
    "float_type": "invalid_type",
    "string_type": "invalid_type",
    "int_parsing": "invalid_type",
    "float_parsing": "invalid_type",
    "int_from_float": "invalid_type",
    "bool_parsing": "invalid_type",
    "bool_type": "invalid_type",
}
MAX_NAME = 256  # characters of the name of a model or a voice: a speaker id may be long
MAX_TEXT = 1_000_000  # characters; --max-characters sets a lower limit
MAX_TRANSCRIPT = 2_000  # characters that a voice prompt of 30 s may contain
LANGUAGE = r"^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,3}$"  # BCP 47
OPEN_PATHS = ("/health",)  # probes have no key and use any host name
MAX_HEADER_BYTES = 32 * 1024  # request line and all headers; browsers and clients send below 8 kB
HEADER_SECONDS = 10.0  # from the first byte, or from the connection, to the end of the headers
BODY_SECONDS = 120.0  # to the end of the body: 10 MB at 1 Mbit/s take 80 s
DRAIN_SECONDS = 10.0  # for the rest of a body after an error was answered
STALL_SECONDS = 120.0  # that a client may not read what it was sent
# A peer that vanished without closing its connection is found after 60 s.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}
ERROR = b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

Phase = Literal["headers", "body", "drain"]
PHASE_SECONDS: dict[Phase, float] = {
    "headers": HEADER_SECONDS,
    "body": BODY_SECONDS,
    "drain": DRAIN_SECONDS,
}


class ApiError(Exception):
    """An error response: HTTP ``status``, message, OpenAI's ``code`` and the wrong parameter."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object of OpenAI's errors."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": printable(self.message),
            "type": ERROR_TYPES.get(self.status, default),
            "param": None if self.param is None else printable(self.param),
            "code": self.code or ERROR_CODES.get(self.status),
        }
        return {"error": error}

    def response(self) -> JSONResponse:
        """The response, in the format of OpenAI's errors."""
        return JSONResponse(self.body(), self.status, self.headers)


def printable(text: str) -> str:
    """``text`` without lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def install_handlers(app: FastAPI) -> None:
    """Make ``app`` answer all exceptions in the format of :class:`ApiError`."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(SynthesisError)
    async def synthesis_error(request: Request, error: SynthesisError) -> JSONResponse:
        return ApiError(400, str(error), "invalid_value").response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        problem: dict[str, Any] = dict(error.errors()[0])
        param = ".".join(str(part) for part in problem["loc"][1:])
        code = PROBLEM_CODES.get(problem["type"], "invalid_value")
        return ApiError(400, f"{param}: {problem['msg']}", code, param).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail)).response()

    @app.exception_handler(Exception)
    async def other_error(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "internal error; see the log of the server").response()


def check_unicode(value: Any) -> Any:
    """Raise ``ValueError`` for a lone surrogate: JSON can contain one, UTF-8 cannot."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("the text has a lone surrogate, which is not Unicode text") from None
    return value


def voice_id(value: Any) -> Any:
    """The name of a voice. OpenAI's API also allows an object with the name as its ``id``."""
    return value["id"] if isinstance(value, dict) and set(value) == {"id"} else value


Unicode = BeforeValidator(check_unicode)
Text = Annotated[str, Field(max_length=MAX_TEXT), Unicode]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), Unicode]
NewName = Annotated[str, Field(pattern=f"^{NAME.pattern}$", max_length=64), Unicode]
Transcript = Annotated[str, Field(min_length=1, max_length=MAX_TRANSCRIPT), Unicode]
Language = Annotated[str, Field(max_length=35, pattern=LANGUAGE), Unicode]


class SpeechRequest(BaseModel):
    """The body of ``/v1/audio/speech``. Unknown keys are rejected.

    ``instructions`` is the voice description. ``stream``, ``language``, ``seed`` and the sampling
    settings are not in OpenAI's API. Without ``seed`` each request has another result; without
    ``language`` the text is in the language of the model.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    input: Annotated[str, Field(min_length=1, max_length=MAX_TEXT), Unicode]
    model: Name
    voice: Annotated[Name, BeforeValidator(voice_id)] = DEFAULT_VOICE
    response_format: Format = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4)
    instructions: Text = ""
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool | None = None
    language: Language | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    # The limits exclude values whose logits overflow float32.
    temperature: float | None = Field(None, ge=0, le=5)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    max_tokens: int | None = Field(None, gt=0, lt=2**31)

    def sampling(self, defaults: SamplingConfig) -> SamplingConfig:
        """``defaults`` with the settings of the request. Raises :class:`ApiError` (400)."""
        changes = self.model_dump(include=set(SamplingConfig.model_fields), exclude_none=True)
        try:
            return SamplingConfig.parse(defaults.model_dump() | changes, "request")
        except ConfigError as error:
            raise ApiError(400, str(error), "invalid_value") from None


def check_request(
    request: SpeechRequest, card: ServingCard, config: ServerConfig, folder: Path
) -> None:
    """Raise :class:`ApiError` for another model, long texts, and consents that have ended.

    A server may run for longer than a consent is valid, so each request checks the consents.
    ``folder`` is that of the model.
    """
    try:
        require_consents(card, folder)
    except ConsentError as error:
        raise ApiError(403, str(error), "consent_ended") from None
    check_model(request.model, card)
    for name, text in (("input", request.input), ("instructions", request.instructions)):
        if len(text) > config.max_characters:
            message = f"{name} has {len(text)} characters, at most {config.max_characters}"
            raise ApiError(400, message, "string_above_max_length", name)


def check_model(name: str, card: ServingCard) -> None:
    """Raise :class:`ApiError` (404) unless ``name`` is the model of ``card``."""
    if name != card.recipe:
        message = f"no model {name!r}; this server has {card.recipe!r}"
        raise ApiError(404, message, "model_not_found", "model")


class BoundedProtocol(H11Protocol):
    """An HTTP connection of uvicorn with time limits. h11 limits the size of the headers.

    With ``max_connections`` open, a new connection closes the oldest idle one. If none is idle, the
    new one gets status 503.
    """

    max_connections = 512
    deadline: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None
    phase: tuple[Phase, int] | None = None  # and the identity of its request
    number = 0
    numbers = count()  # of all connections, in the order in which they were opened

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the headers, or reject the connection."""
        super().connection_made(transport)
        self.number = next(self.numbers)
        set_keepalive(transport.get_extra_info("socket"))
        if len(self.connections) > self.max_connections:
            idle = [c for c in self.connections if isinstance(c, BoundedProtocol) and c.idle]
            oldest = min((c for c in idle if c is not self), key=lambda c: c.number, default=None)
            if oldest is None:
                self.reject(b"503 Service Unavailable")
                return
            oldest.transport.abort()
            self.connections.discard(oldest)
        self._set_deadline()

    @property
    def idle(self) -> bool:
        """True if no request is in progress, also while its headers are incomplete."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Parse the data; start or end the time of the current phase."""
        super().data_received(data)
        self._set_deadline()

    def on_response_complete(self) -> None:
        """Start the keep-alive time, and that of the next phase."""
        super().on_response_complete()
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all timers."""
        super().connection_lost(exc)
        for timer in (self.deadline, self.stalled):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is sent to: start its time to catch up."""
        super().pause_writing()
        self.stalled = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self.stalled is not None:
            self.stalled.cancel()

    def reject(self, status: bytes) -> None:
        """Answer ``status`` and close the connection."""
        if not self.transport.is_closing():
            self.transport.write(ERROR % status)
            self.transport.close()

    def _set_deadline(self) -> None:
        phase = self._phase()
        if phase == self.phase or self.transport.is_closing():
            return
        self.phase = phase
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
        if phase is not None:
            self.deadline = self.loop.call_later(PHASE_SECONDS[phase[0]], self._expire, phase[0])

    def _phase(self) -> tuple[Phase, int] | None:
        """What the connection waits for from the client; None between requests."""
        if self.cycle is None:
            return "headers", 0
        number = id(self.cycle)
        if not self.cycle.response_complete:
            return ("body", number) if self.cycle.more_body else None
        if self.cycle.more_body:
            return "drain", number
        return ("headers", number) if self.conn.trailing_data[0] else None

    def _expire(self, phase: Phase) -> None:
        if phase == "headers":
            self.reject(b"408 Request Timeout")
        else:
            self.transport.abort()


def bounded_protocol(max_connections: int) -> type[BoundedProtocol]:
    """The protocol class for ``uvicorn.Config(http=…)``."""
    return type("Protocol", (BoundedProtocol,), {"max_connections": max_connections})


def set_keepalive(connection: socket.socket | None) -> None:
    """Have the kernel end a TCP connection whose peer does not answer."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not on every platform
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class RequestGuard:
    """ASGI middleware that rejects requests with a foreign host, a wrong key or a large body."""

    def __init__(self, app: ASGIApp, key: str, max_bytes: int, hosts: frozenset[str]) -> None:
        """``key`` empty: no key is needed, and the host must be one of ``hosts`` or an address.

        ``max_bytes`` limits the body.
        """
        self.app, self.key, self.max_bytes, self.hosts = app, key, max_bytes, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error, or call the application and count the bytes that it reads."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        error = self._error(scope["path"], headers)
        if error is not None:
            await error.response()(scope, receive, send)
            return
        size = 0

        async def bounded_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        await self.app(scope, bounded_receive, send)

    def _error(self, path: str, headers: Mapping[bytes, bytes]) -> ApiError | None:
        given = headers.get(b"authorization", b"")
        expected = f"Bearer {self.key}".encode()
        if path not in OPEN_PATHS:
            if self.key and not hmac.compare_digest(given, expected):
                return ApiError(401, "missing or wrong API key", "invalid_api_key")
            if not self.key and not self._allowed(headers.get(b"host", b"")):
                message = "this host name is not allowed: start the server with --allowed-hosts"
                return ApiError(403, message, "host_not_allowed")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_bytes:
            return ApiError(413, self._too_large(), "request_too_large")
        return None

    def _allowed(self, header: bytes) -> bool:
        """Web pages reach this machine by a name that they control (DNS rebinding), not by address.

        A request without the header is of HTTP/1.0, which browsers do not send.
        """
        host = header.decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return not header or name in self.hosts or is_address(name)

    def _too_large(self) -> str:
        return f"the request is larger than {self.max_bytes / 2**20:g} MB"


def known_hosts(listening: str, allowed: str) -> frozenset[str]:
    """Host names of this machine, and those of ``allowed``, separated by commas."""
    names = ["localhost", listening, socket.gethostname(), *allowed.split(",")]
    return frozenset(name.strip().lower() for name in names if name.strip())


def is_address(name: str) -> bool:
    """True for an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
