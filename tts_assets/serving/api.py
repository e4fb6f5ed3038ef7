"""The HTTP face of a serving model, in the shapes of OpenAI's API.

    POST /v1/audio/speech   text to speech: mp3, opus (ogg), flac, wav, pcm
    GET  /v1/voices         the voices; POST adds one: multipart with name, text, file, language
    GET  /v1/models         the one model
    GET  /health /metrics   for probes and for Prometheus

Beyond OpenAI's fields a request for speech may have ``seed``, ``language``, ``stream`` (for wav;
pcm always streams) and the keys of the sampling. ``instructions`` is the voice description.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field

from tts_assets.config import ConfigError
from tts_assets.corpora.consent import ConsentError
from tts_assets.serving.api_errors import ApiError, Gate, install_handlers
from tts_assets.serving.config import ServerConfig, ServingCard
from tts_assets.serving.formats import MEDIA_TYPES, Format, StreamEncoder, encode
from tts_assets.serving.metrics import Metrics
from tts_assets.serving.provenance import header, refuse_ended
from tts_assets.serving.speaker import Speaker
from tts_assets.serving.synthesis import Line
from tts_assets.serving.voices import OWN, VoiceRegistry
from tts_assets.speechlm.config import SamplingConfig

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
        self.speaker: Speaker | None = None
        self.voices: VoiceRegistry | None = None
        self.busy = 0

    def ready(self) -> tuple[Speaker, VoiceRegistry]:
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
        speaker = Speaker(model, config, on_death)
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
        line = Line(
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
    service: Service, line: Line, sampling: SamplingConfig, request: SpeechRequest, started: float
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
    line: Line,
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
