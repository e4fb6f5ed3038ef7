"""The HTTP API of a serving model, compatible with OpenAI's API.

    POST   /v1/audio/speech   text to speech: mp3, opus (ogg), aac, flac, wav, pcm
    GET    /v1/voices         the voices
    POST   /v1/voices         adds one: multipart with name, text, file, language
    DELETE /v1/voices/{id}    deletes an uploaded one
    GET    /v1/models         the one model; /v1/models/{id} too
    GET    /health /metrics   for probes and for Prometheus

A request for speech may also have ``seed``, ``language``, ``stream`` (for wav, mp3 and aac; pcm is
always streamed) and the sampling settings. ``instructions`` is the voice description. The header
``X-Seed`` has the seed of the response. A request ends when its client closes the connection.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.requests import ClientDisconnect

from tts_assets.provenance.manifest import Signature
from tts_assets.serving.async_engine import EngineUnavailable, StreamingSynthesizer, Usage
from tts_assets.serving.audio_formats import (
    MEDIA_TYPES,
    STREAM_FORMATS,
    StreamEncoder,
    StreamFormat,
    Tempo,
    encode,
    provenance_header,
    signature,
)
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.pieces import Wave
from tts_assets.serving.requests import (
    MAX_NAME,
    ApiError,
    Language,
    NewName,
    RequestGuard,
    SpeechRequest,
    Transcript,
    check_model,
    check_request,
    install_handlers,
    known_hosts,
)
from tts_assets.serving.served_model import Speech, SynthesisError, SynthesisLine
from tts_assets.serving.voices import VoiceRegistry
from tts_assets.speechlm.config import SamplingConfig

BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)  # seconds
RETRY_AFTER = "1"  # seconds: about the time that a sentence takes
RESTART_SECONDS = "30"  # of an engine on two cores
CLIENT_CLOSED = 499  # status of a request whose client has left, as nginx logs it
SEED_HEADER = "X-Seed"

T = TypeVar("T")


class Metrics:
    """The Prometheus metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "tts_requests", "Completed speech requests", ["format"], registry=registry
        )
        self.refused = Counter(
            "tts_refused", "Requests beyond the concurrency limit (429)", registry=registry
        )
        self.busy = Gauge("tts_busy", "Requests in progress", registry=registry)
        self.audio = Counter("tts_audio_seconds", "Seconds of speech", registry=registry)
        self.duration = Histogram(
            "tts_request_seconds", "Request to last byte", registry=registry, buckets=BUCKETS
        )
        self.first_audio = Histogram(
            "tts_first_audio_seconds", "Request to first chunk", registry=registry, buckets=BUCKETS
        )
        self.faults = Gauge(
            "tts_faulty_completions",
            "Completions that were silent, looped or did not end",
            ["fault"],
            registry=registry,
        )

    def completed(self, audio_format: str, started: float, seconds: float) -> None:
        """Count a request with ``seconds`` of audio. ``started``: its ``time.perf_counter()``."""
        self.requests.labels(audio_format).inc()
        self.audio.inc(seconds)
        self.duration.observe(time.perf_counter() - started)

    def text(self, faults: Mapping[Any, int]) -> bytes:
        """The metrics in Prometheus' text format. ``faults`` are the counts by kind."""
        for fault, number in faults.items():
            self.faults.labels(fault).set(number)
        return generate_latest(self.registry)


class Service:
    """The state that the routes share: synthesizer, voices, metrics, requests in progress."""

    def __init__(self, folder: Path, config: ServerConfig, metrics: Metrics) -> None:
        self.folder, self.config, self.metrics = folder, config, metrics
        self.synthesizer: StreamingSynthesizer | None = None
        self.signature: Signature | None = None
        self.voices: VoiceRegistry | None = None
        self.busy = 0

    def ready(self) -> tuple[StreamingSynthesizer, VoiceRegistry]:
        """The synthesizer and the voices. Raises :class:`ApiError` (503) without an engine."""
        if self.synthesizer is None or self.voices is None or self.synthesizer.dead:
            raise engine_error("the engine is being restarted")
        return self.synthesizer, self.voices

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Take one of the ``concurrency`` slots. Raises :class:`ApiError` (429) if none is free."""
        if self.busy >= self.config.concurrency:
            self.metrics.refused.inc()
            raise ApiError(
                429,
                f"{self.busy} requests are in progress, the limit of this server; try again",
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


Opener = Callable[[Path, ServerConfig, Callable[[], None]], StreamingSynthesizer]


def build_app(
    model: Path,
    config: ServerConfig,
    key: str,
    on_engine_exit: Callable[[], None],
    open_model: Opener = StreamingSynthesizer.open,
) -> FastAPI:
    """The application. Its engine starts and ends with it.

    ``key`` empty: no API key is needed. ``on_engine_exit`` is called if the engine fails again and
    again. ``open_model`` makes the synthesizer.
    """
    service = Service(model, config, Metrics())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        synthesizer = open_model(model, config, on_engine_exit)
        try:
            service.voices = VoiceRegistry(
                synthesizer.model, config.voices, config.max_voices, synthesizer.adapters
            )
            service.signature = signature(model, synthesizer.model.card)
            service.synthesizer = synthesizer
            yield
        finally:
            synthesizer.close()

    app = FastAPI(title="tts-assets", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(
        RequestGuard,
        key=key,
        max_bytes=int(config.max_upload_mb * 2**20),
        hosts=known_hosts(config.host, config.allowed_hosts),
    )
    install_handlers(app)
    install_engine_handlers(app)
    add_speech_routes(app, service)
    add_voice_routes(app, service)
    add_status_routes(app, service)
    return app


def engine_error(message: str) -> ApiError:
    """Status 503: the engine is being restarted."""
    headers = {"Retry-After": RESTART_SECONDS}
    return ApiError(503, message, "engine_unavailable", headers=headers)


def install_engine_handlers(app: FastAPI) -> None:
    """Answer a failure of the engine with 503, and end requests whose client has left."""

    @app.exception_handler(EngineUnavailable)
    async def unavailable(request: Request, error: EngineUnavailable) -> Response:
        return engine_error(str(error)).response()

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client closes the connection.

    The body of the request must have been read. Raises :class:`ClientDisconnect`.
    """

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(disconnect())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


@dataclass(frozen=True)
class SpeechJob:
    """A validated request for speech. ``started`` is its ``time.perf_counter()``."""

    service: Service
    request: SpeechRequest
    line: SynthesisLine
    sampling: SamplingConfig
    started: float

    @property
    def stream_format(self) -> StreamFormat | None:
        """The format that is encoded in chunks; None: the whole file is encoded at once."""
        return next((f for f in STREAM_FORMATS if f == self.request.response_format), None)

    async def whole(self, usage: Usage | None = None) -> tuple[bytes, Speech]:
        """The whole file, and its speech."""
        synthesizer, _ = self.service.ready()
        audio_format, model = self.request.response_format, synthesizer.model
        signed = self.service.signature

        def encoded(wave: Wave) -> tuple[bytes, int]:
            wave = Tempo(model.sample_rate, self.request.speed).apply(wave)
            body = encode(wave, model.sample_rate, audio_format, model.provenance)
            return signed.add(body, audio_format) if signed else body, len(wave)

        async with self.service.slot():
            speech = await synthesizer.synthesize(self.line, self.sampling, usage)
            body, samples = await synthesizer.in_codec_thread(encoded, speech.wave)
        self.service.metrics.completed(audio_format, self.started, samples / model.sample_rate)
        return body, speech

    async def chunks(self, usage: Usage | None = None) -> AsyncGenerator[bytes]:
        """Yield encoded chunks while the line is synthesized, and update the metrics."""
        if (audio_format := self.stream_format) is None:
            yield (await self.whole(usage))[0]
            return
        synthesizer, _ = self.service.ready()
        metrics, rate, samples = self.service.metrics, synthesizer.model.sample_rate, 0
        encoder = StreamEncoder(rate, audio_format, synthesizer.model.provenance)
        tempo = Tempo(rate, self.request.speed)
        stream = synthesizer.stream(self.line, self.sampling, usage)
        async with self.service.slot(), aclosing(stream) as waves:
            async for wave in waves:
                if not samples:
                    metrics.first_audio.observe(time.perf_counter() - self.started)
                samples += len(wave)
                if chunk := encoder.push(tempo.push(wave)):
                    yield chunk
            yield encoder.push(tempo.finish()) + encoder.finish()
        metrics.completed(audio_format, self.started, samples / rate / self.request.speed)

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield server-sent events with base64 audio, as OpenAI's ``stream_format="sse"``."""
        usage, started = Usage(), False
        try:
            async with aclosing(self.chunks(usage)) as chunks:
                async for chunk in chunks:
                    started, audio = True, base64.b64encode(chunk).decode()
                    yield event({"type": "speech.audio.delta", "audio": audio})
        except EngineUnavailable as error:
            if not started:  # the response has not begun, so it has a status of its own
                raise
            yield event({"type": "error"} | engine_error(str(error)).body())
            return
        counts = asdict(usage) | {"total_tokens": usage.input_tokens + usage.output_tokens}
        yield event({"type": "speech.audio.done", "usage": counts})


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n".encode()


def add_speech_routes(app: FastAPI, service: Service) -> None:
    """Add ``/v1/audio/speech``. Invalid requests get the status of an :class:`ApiError`."""

    @app.post("/v1/audio/speech")
    async def speech(body: SpeechRequest, request: Request) -> Response:
        job = speech_job(service, body)
        headers = provenance_header(service.ready()[0].model.provenance)
        headers[SEED_HEADER] = str(job.sampling.seed)
        media_type = MEDIA_TYPES[body.response_format]
        if body.stream_format == "sse":
            return await streamed(request, job.events(), "text/event-stream", headers)
        if body.response_format == "pcm" or body.stream:
            if job.stream_format is None:
                message = f"{body.response_format} cannot be streamed: use pcm, wav, mp3 or aac"
                raise ApiError(400, message, "unsupported_value", "stream")
            return await streamed(request, job.chunks(), media_type, headers)
        audio, result = await while_connected(request, job.whole())
        headers |= {"X-Fault": result.fault} if result.fault else {}
        return Response(audio, media_type=media_type, headers=headers)


def speech_job(service: Service, body: SpeechRequest) -> SpeechJob:
    """The job of a request. Raises :class:`ApiError` if the request is invalid.

    Without a seed the result differs each time.
    """
    started = time.perf_counter()
    synthesizer, voices = service.ready()
    card = synthesizer.model.card
    check_request(body, card, service.config, service.folder)
    seed = secrets.randbelow(2**63) if body.seed is None else body.seed
    sampling = body.sampling(card.sampling).model_copy(update={"seed": seed})
    try:
        voice = voices[body.voice]
    except SynthesisError as error:
        raise ApiError(400, str(error), "invalid_value", "voice") from None
    adapter = synthesizer.adapters.get(body.voice)
    # Without a language the text is in that of the voice's training, not of the base's.
    language = body.language or (adapter.card.language if adapter else "")
    name = adapter.name if adapter else ""
    line = SynthesisLine(body.input, voice, seed, body.instructions, language, name)
    return SpeechJob(service, body, line, sampling, started)


async def streamed(
    request: Request, chunks: AsyncGenerator[bytes], media_type: str, headers: Mapping[str, str]
) -> Response:
    """A streamed response. It starts with the first chunk: earlier errors have their own status."""
    first = await while_connected(request, next_chunk(chunks))

    async def body() -> AsyncGenerator[bytes]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return StreamingResponse(body(), media_type=media_type, headers=dict(headers))


async def next_chunk(chunks: AsyncGenerator[bytes]) -> bytes:
    """The next chunk; the generator is closed on an error and when it is cancelled."""
    try:
        return await anext(chunks)
    except BaseException:
        await chunks.aclose()
        raise


def add_voice_routes(app: FastAPI, service: Service) -> None:
    """Add ``/v1/voices``. Invalid requests get the status of an :class:`ApiError`."""

    @app.get("/v1/voices")
    async def list_voices() -> dict[str, Any]:
        synthesizer, voices = service.ready()
        rate = synthesizer.model.card.token_rate
        rows = [
            {"id": name, "object": "voice"}
            | (voice.model_dump(include={"text", "speaker", "language"}) if voice else {})
            | ({"seconds": len(voice.codes) / rate} if voice else {})
            for name, voice in voices.voices.items()
        ]
        return {"object": "list", "data": rows}

    @app.post("/v1/voices", status_code=201)
    async def add_voice(
        request: Request,
        name: Annotated[NewName, Form()],
        text: Annotated[Transcript, Form()],
        file: Annotated[UploadFile, File()],
        language: Annotated[Language | None, Form()] = None,
    ) -> dict[str, Any]:
        synthesizer, voices = service.ready()
        voices.check_name(name)
        audio = await file.read()
        async with service.slot():
            making = synthesizer.in_codec_thread(voices.make, audio, text, language or "")
            voice = await while_connected(request, making)
        voices.add(name, voice)
        return {"id": name, "object": "voice", "text": voice.text, "language": voice.language}

    @app.delete("/v1/voices/{name}")
    async def delete_voice(name: str) -> dict[str, Any]:
        _, voices = service.ready()
        if name not in voices.voices:
            raise ApiError(404, f"no voice {name[:MAX_NAME]!r}", "voice_not_found", "voice")
        voices.delete(name)
        return {"id": name, "object": "voice", "deleted": True}


def add_status_routes(app: FastAPI, service: Service) -> None:
    """Add ``/v1/models``, ``/health`` and ``/metrics``."""

    def model_object() -> dict[str, Any]:
        recipe = service.ready()[0].model.card.recipe
        return {"id": recipe, "object": "model", "created": 0, "owned_by": "tts-assets"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_object()]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        check_model(name[:MAX_NAME], service.ready()[0].model.card)
        return model_object()

    @app.get("/health")
    async def health() -> JSONResponse:
        service.ready()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        synthesizer, _ = service.ready()
        text = service.metrics.text(dict(synthesizer.faults))
        return Response(text, media_type=CONTENT_TYPE_LATEST)
