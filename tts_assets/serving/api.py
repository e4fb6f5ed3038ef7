"""The HTTP API of a serving model, compatible with OpenAI's API.

    POST /v1/audio/speech   text to speech: mp3, opus (ogg), flac, wav, pcm
    GET  /v1/voices         the voices; POST adds one: multipart with name, text, file, language
    GET  /v1/models         the one model
    GET  /health /metrics   for probes and for Prometheus

A request for speech may also have ``seed``, ``language``, ``stream`` (for wav; pcm is always
streamed) and the sampling settings. ``instructions`` is the voice description.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

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

from tts_assets.serving.async_engine import StreamingSynthesizer
from tts_assets.serving.audio_formats import MEDIA_TYPES, StreamEncoder, encode, provenance_header
from tts_assets.serving.config import ServerConfig
from tts_assets.serving.limits import RequestGuard
from tts_assets.serving.schemas import ApiError, SpeechRequest, check_request, install_handlers
from tts_assets.serving.served_model import SynthesisLine
from tts_assets.serving.voices import VoiceRegistry
from tts_assets.speechlm.config import SamplingConfig

BUCKETS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)  # seconds
RETRY_AFTER = "1"  # seconds: about the time that a sentence takes


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

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self.synthesizer: StreamingSynthesizer | None = None
        self.voices: VoiceRegistry | None = None
        self.busy = 0

    def ready(self) -> tuple[StreamingSynthesizer, VoiceRegistry]:
        """The synthesizer and the voices. Raises :class:`ApiError` (503) without an engine."""
        if self.synthesizer is None or self.voices is None or self.synthesizer.dead:
            raise ApiError(503, "the engine is not running", "engine_dead")
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


def build_app(
    model: Path, config: ServerConfig, key: str, on_engine_exit: Callable[[], None]
) -> FastAPI:
    """The application. Its engine starts and ends with it.

    ``key`` empty: no API key is needed. ``on_engine_exit`` is called if the engine fails.
    """
    service = Service(config, Metrics())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        synthesizer = StreamingSynthesizer(model, config, on_engine_exit)
        try:
            service.voices = VoiceRegistry(synthesizer.model, config.voices, config.max_voices)
            service.synthesizer = synthesizer
            yield
        finally:
            synthesizer.close()

    app = FastAPI(title="tts-assets", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(RequestGuard, key=key, max_bytes=int(config.max_upload_mb * 2**20))
    install_handlers(app)
    add_speech_routes(app, service)
    add_voice_routes(app, service)
    add_status_routes(app, service)
    return app


def add_speech_routes(app: FastAPI, service: Service) -> None:
    """Add ``/v1/audio/speech``."""

    @app.post("/v1/audio/speech")
    async def speech(request: SpeechRequest) -> Response:
        started = time.perf_counter()
        synthesizer, voices = service.ready()
        check_request(request, synthesizer.model.card, service.config)
        sampling = request.sampling(synthesizer.model.card.sampling)
        name = request.voice if isinstance(request.voice, str) else request.voice.id
        line = SynthesisLine(
            request.input, voices[name], None, request.instructions, language=request.language
        )
        if request.response_format == "pcm" or request.stream:
            return await stream_response(service, line, sampling, request, started)
        async with service.slot():
            result = await synthesizer.synthesize(line, sampling)
            rate, audio_format = synthesizer.model.sample_rate, request.response_format
            comment = synthesizer.model.provenance
            body = await synthesizer.in_codec_thread(
                encode, result.wave, rate, audio_format, comment
            )
        service.metrics.completed(audio_format, started, len(result.wave) / rate)
        headers = provenance_header(comment) | ({"X-Fault": result.fault} if result.fault else {})
        return Response(body, media_type=MEDIA_TYPES[audio_format], headers=headers)


async def stream_response(
    service: Service,
    line: SynthesisLine,
    sampling: SamplingConfig,
    request: SpeechRequest,
    started: float,
) -> Response:
    """A streamed response. It starts with the first audio: earlier errors have their own status."""
    audio_format = request.response_format
    if audio_format not in ("pcm", "wav"):
        raise ApiError(400, f"{audio_format} cannot be streamed: use pcm or wav", param="stream")
    headers = provenance_header(service.ready()[0].model.provenance)
    chunks = stream_chunks(service, line, sampling, audio_format, started)
    first = await anext(chunks)

    async def body() -> AsyncGenerator[bytes]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                yield chunk

    return StreamingResponse(body(), media_type=MEDIA_TYPES[audio_format], headers=headers)


async def stream_chunks(
    service: Service,
    line: SynthesisLine,
    sampling: SamplingConfig,
    audio_format: Literal["pcm", "wav"],
    started: float,
) -> AsyncGenerator[bytes]:
    """Yield encoded chunks of a line while it is synthesized, and update the metrics."""
    synthesizer, _ = service.ready()
    rate, samples = synthesizer.model.sample_rate, 0
    encoder = StreamEncoder(rate, audio_format, synthesizer.model.provenance)
    async with service.slot(), aclosing(synthesizer.stream(line, sampling)) as waves:
        async for wave in waves:
            if not samples:
                service.metrics.first_audio.observe(time.perf_counter() - started)
            samples += len(wave)
            yield encoder.push(wave)
        yield encoder.finish()
    service.metrics.completed(audio_format, started, samples / rate)


def add_voice_routes(app: FastAPI, service: Service) -> None:
    """Add ``/v1/voices``."""

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
        name: Annotated[str, Form()],
        text: Annotated[str, Form()],
        file: Annotated[UploadFile, File()],
        language: Annotated[str, Form()] = "en",
    ) -> dict[str, Any]:
        synthesizer, voices = service.ready()
        voices.check_name(name)
        audio = await file.read()
        async with service.slot():
            voice = await synthesizer.in_codec_thread(voices.make, audio, text, language)
        voices.add(name, voice)
        return {"id": name, "object": "voice", "text": voice.text, "language": language}


def add_status_routes(app: FastAPI, service: Service) -> None:
    """Add ``/v1/models``, ``/health`` and ``/metrics``."""

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        synthesizer, _ = service.ready()
        row = {"id": synthesizer.model.card.recipe, "object": "model", "created": 0}
        return {"object": "list", "data": [row | {"owned_by": "tts-assets"}]}

    @app.get("/health")
    async def health() -> JSONResponse:
        service.ready()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        synthesizer, _ = service.ready()
        text = service.metrics.text(dict(synthesizer.faults))
        return Response(text, media_type=CONTENT_TYPE_LATEST)
