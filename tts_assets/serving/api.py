"""The HTTP face of a serving model, in the shapes of OpenAI's API.

    POST /v1/audio/speech   text to speech: mp3, opus (ogg), flac, wav, pcm
    GET  /v1/voices         the voices; POST adds one: multipart with name, text, file, language
    GET  /v1/models         the one model
    GET  /health /metrics   for probes and for Prometheus

Beyond OpenAI's fields a request for speech may have ``seed``, ``language``, ``stream`` (for wav;
pcm always streams) and the keys of the sampling. ``instructions`` is the voice description.

Who may come in, and what is wrong with a request, in the shape of OpenAI's errors.

What Prometheus may know of a server.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import ConsentError
from tts_assets.serving.async_engine import OWN, StreamingSynthesizer, VoiceRegistry
from tts_assets.serving.config import ServerConfig, ServingCard
from tts_assets.serving.streaming import (
    MEDIA_TYPES,
    Format,
    StreamEncoder,
    encode,
    header,
    refuse_ended,
)
from tts_assets.serving.synthesis import SynthesisError, SynthesisLine
from tts_assets.speechlm.config import SamplingConfig

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
OPEN_PATHS = ("/health",)  # probes have no key


class ApiError(Exception):
    """An answer other than success."""

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

    def response(self) -> JSONResponse:
        kind = TYPES.get(self.status) or (
            "server_error" if self.status >= 500 else "invalid_request_error"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


class Gate:
    """Refuses a wrong key and a body that is too large, before anything is read of it."""

    def __init__(self, app: ASGIApp, key: str, most_bytes: int) -> None:
        self.app, self.key, self.most_bytes = app, key, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        error = self._obstacle(scope["path"], headers)
        if error is not None:
            await error.response()(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most_bytes:
                raise HTTPException(413, self._too_large())
            return message

        await self.app(scope, counted, send)

    def _obstacle(self, path: str, headers: Mapping[bytes, bytes]) -> ApiError | None:
        given = headers.get(b"authorization", b"")
        wanted = f"Bearer {self.key}".encode()
        if self.key and path not in OPEN_PATHS and not hmac.compare_digest(given, wanted):
            return ApiError(401, "missing or wrong API key", "invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most_bytes:
            return ApiError(413, self._too_large(), "request_too_large")
        return None

    def _too_large(self) -> str:
        return f"the request is larger than {self.most_bytes / 2**20:g} MB"


def install_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(SynthesisError)
    async def unspeakable(request: Request, error: SynthesisError) -> JSONResponse:
        return ApiError(400, str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        problem: dict[str, Any] = dict(error.errors()[0])
        param = ".".join(str(part) for part in problem["loc"][1:])
        return ApiError(400, f"{param}: {problem['msg']}", param=param).response()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail)).response()

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "the server failed; its log tells more").response()


SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "tts_requests", "Requests that were spoken", ["format"], registry=registry
        )
        self.refused = Counter("tts_refused", "Requests beyond the limit (429)", registry=registry)
        self.busy = Gauge("tts_busy", "Requests being served", registry=registry)
        self.audio = Counter("tts_audio_seconds", "Seconds of speech", registry=registry)
        self.duration = Histogram(
            "tts_request_seconds", "Request to last byte", registry=registry, buckets=SECONDS
        )
        self.first_audio = Histogram(
            "tts_first_audio_seconds", "Request to first chunk", registry=registry, buckets=SECONDS
        )
        self.faults = Gauge(
            "tts_faulty_completions",
            "Completions that were silent, looped or did not end",
            ["fault"],
            registry=registry,
        )

    def spoken(self, wanted: str, started: float, seconds: float) -> None:
        """A request that began at ``started`` has got ``seconds`` of audio."""
        self.requests.labels(wanted).inc()
        self.audio.inc(seconds)
        self.duration.observe(time.perf_counter() - started)

    def text(self, faults: Mapping[Any, int]) -> bytes:
        """The exposition format."""
        for fault, number in faults.items():
            self.faults.labels(fault).set(number)
        return generate_latest(self.registry)


RETRY_AFTER = "1"  # seconds: a sentence is spoken in about that time


class VoiceId(BaseModel):
    id: str


class SpeechRequest(BaseModel):
    """The body of ``/v1/audio/speech``; an unknown key is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    input: str = Field(min_length=1)
    model: str
    voice: str | VoiceId = OWN
    response_format: Format = "mp3"
    speed: float = Field(1.0, ge=1, le=1)  # the model has one speed
    instructions: str = ""
    stream_format: Literal["audio"] = "audio"
    stream: bool | None = None
    language: str = "en"
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None

    def sampling(self, defaults: SamplingConfig) -> SamplingConfig:
        given = self.model_dump(include=set(SamplingConfig.model_fields), exclude_none=True)
        try:
            return SamplingConfig.parse(defaults.model_dump() | given, "request")
        except ConfigError as error:
            raise ApiError(400, str(error)) from None


class Service:
    """What the routes share while the server runs: the engine, the voices, who is being served."""

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self.speaker: StreamingSynthesizer | None = None
        self.voices: VoiceRegistry | None = None
        self.busy = 0

    def ready(self) -> tuple[StreamingSynthesizer, VoiceRegistry]:
        if self.speaker is None or self.voices is None or self.speaker.dead:
            raise ApiError(503, "the engine is not running", "engine_dead")
        return self.speaker, self.voices

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the places for requests at once; status 429 if all are taken."""
        if self.busy >= self.config.concurrency:
            self.metrics.refused.inc()
            raise ApiError(
                429,
                f"{self.busy} requests are being served, the most at once; try again",
                "rate_limit_exceeded",
                headers={"Retry-After": RETRY_AFTER},
            )
        self.busy += 1
        self.metrics.busy.set(self.busy)
        try:
            yield
        finally:
            self.busy -= 1
            self.metrics.busy.set(self.busy)


def build_app(model: Path, config: ServerConfig, key: str, on_death: Callable[[], None]) -> FastAPI:
    """The application; its engine starts and ends with it. ``on_death`` is called if the engine
    ends by itself."""
    service = Service(config, Metrics())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        speaker = StreamingSynthesizer(model, config, on_death)
        try:
            service.voices = VoiceRegistry(speaker.model, config.voices, config.max_voices)
            service.speaker = speaker
            yield
        finally:
            speaker.close()

    app = FastAPI(title="tts-assets", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, key=key, most_bytes=int(config.max_upload_mb * 2**20))
    install_handlers(app)
    add_speech(app, service)
    add_voices(app, service)
    add_status(app, service)
    return app


def add_speech(app: FastAPI, service: Service) -> None:
    @app.post("/v1/audio/speech")
    async def speech(request: SpeechRequest) -> Response:
        started = time.perf_counter()
        speaker, voices = service.ready()
        check_request(request, speaker.model.card, service.config)
        sampling = request.sampling(speaker.model.card.sampling)
        name = request.voice if isinstance(request.voice, str) else request.voice.id
        line = SynthesisLine(
            request.input, voices[name], None, request.instructions, language=request.language
        )
        if request.response_format == "pcm" or request.stream:
            return await streamed(service, line, sampling, request, started)
        async with service.place():
            spoken = await speaker.say(line, sampling)
            rate, wanted = speaker.model.sample_rate, request.response_format
            comment = speaker.model.provenance
            body = await speaker.in_codec_thread(encode, spoken.wave, rate, wanted, comment)
        service.metrics.spoken(wanted, started, len(spoken.wave) / rate)
        headers = header(comment) | ({"X-Fault": spoken.fault} if spoken.fault else {})
        return Response(body, media_type=MEDIA_TYPES[wanted], headers=headers)


async def streamed(
    service: Service,
    line: SynthesisLine,
    sampling: SamplingConfig,
    request: SpeechRequest,
    started: float,
) -> Response:
    """The response begins with the first audio: what fails before that has a status of its own."""
    wanted = request.response_format
    if wanted not in ("pcm", "wav"):
        raise ApiError(400, f"{wanted} cannot be streamed: ask for pcm or wav", param="stream")
    headers = header(service.ready()[0].model.provenance)
    chunks = chunks_of(service, line, sampling, wanted, started)
    first = await anext(chunks)

    async def body() -> AsyncGenerator[bytes]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return StreamingResponse(body(), media_type=MEDIA_TYPES[wanted], headers=headers)


async def chunks_of(
    service: Service,
    line: SynthesisLine,
    sampling: SamplingConfig,
    wanted: Literal["pcm", "wav"],
    started: float,
) -> AsyncGenerator[bytes]:
    speaker, _ = service.ready()
    rate, samples = speaker.model.sample_rate, 0
    encoder = StreamEncoder(rate, wanted, speaker.model.provenance)
    async with service.place(), aclosing(speaker.stream(line, sampling)) as waves:
        async for wave in waves:
            if not samples:
                service.metrics.first_audio.observe(time.perf_counter() - started)
            samples += len(wave)
            yield encoder.push(wave)
        yield encoder.finish()
    service.metrics.spoken(wanted, started, samples / rate)


def add_voices(app: FastAPI, service: Service) -> None:
    @app.get("/v1/voices")
    async def list_voices() -> dict[str, Any]:
        speaker, voices = service.ready()
        rate = speaker.model.card.token_rate
        rows = [
            {"id": name, "object": "voice"}
            | (voice.model_dump(include={"text", "speaker", "language"}) if voice else {})
            | ({"seconds": len(voice.codes) / rate} if voice else {})
            for name, voice in voices.voices.items()
        ]
        return {"object": "list", "data": rows}

    @app.post("/v1/voices", status_code=201)
    async def add_voice(
        name: Annotated[str, Form()],
        text: Annotated[str, Form()],
        file: Annotated[UploadFile, File()],
        language: Annotated[str, Form()] = "en",
    ) -> dict[str, Any]:
        speaker, voices = service.ready()
        voices.check_name(name)
        audio = await file.read()
        async with service.place():
            voice = await speaker.in_codec_thread(voices.make, audio, text, language)
        voices.add(name, voice)
        return {"id": name, "object": "voice", "text": voice.text, "language": language}


def add_status(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        speaker, _ = service.ready()
        row = {"id": speaker.model.card.recipe, "object": "model", "created": 0}
        return {"object": "list", "data": [row | {"owned_by": "tts-assets"}]}

    @app.get("/health")
    async def health() -> JSONResponse:
        service.ready()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        speaker, _ = service.ready()
        return Response(service.metrics.text(dict(speaker.faults)), media_type=CONTENT_TYPE_LATEST)


def check_request(request: SpeechRequest, card: ServingCard, config: ServerConfig) -> None:
    """Raise :class:`ApiError` for what this model does not say, or may no longer: a server that
    stays up outlives consents."""
    try:
        refuse_ended(card)
    except ConsentError as error:
        raise ApiError(403, str(error), "consent_ended") from None
    if request.model != card.recipe:
        message = f"no model {request.model!r}; this server has {card.recipe!r}"
        raise ApiError(404, message, "model_not_found", "model")
    for name, text in (("input", request.input), ("instructions", request.instructions)):
        if len(text) > config.max_characters:
            message = f"{name} has {len(text)} characters, at most {config.max_characters}"
            raise ApiError(400, message, "string_above_max_length", name)
