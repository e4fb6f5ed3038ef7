"""Requests and errors of the HTTP API, in the format of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import ConsentError
from tts_assets.serving.audio_formats import Format, require_consents
from tts_assets.serving.config import ServerConfig, ServingCard
from tts_assets.serving.served_model import SynthesisError
from tts_assets.serving.voices import DEFAULT_VOICE
from tts_assets.speechlm.config import SamplingConfig

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
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

    def response(self) -> JSONResponse:
        """The response, in the format of OpenAI's errors."""
        kind = ERROR_TYPES.get(self.status) or (
            "server_error" if self.status >= 500 else "invalid_request_error"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


def install_handlers(app: FastAPI) -> None:
    """Make ``app`` answer all exceptions in the format of :class:`ApiError`."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(SynthesisError)
    async def synthesis_error(request: Request, error: SynthesisError) -> JSONResponse:
        return ApiError(400, str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        problem: dict[str, Any] = dict(error.errors()[0])
        param = ".".join(str(part) for part in problem["loc"][1:])
        return ApiError(400, f"{param}: {problem['msg']}", param=param).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail)).response()

    @app.exception_handler(Exception)
    async def other_error(request: Request, error: Exception) -> JSONResponse:
        return ApiError(500, "internal error; see the log of the server").response()


class VoiceId(BaseModel):
    """A voice as an object, as OpenAI's API allows it."""

    id: str


class SpeechRequest(BaseModel):
    """The body of ``/v1/audio/speech``. Unknown keys are rejected.

    ``instructions`` is the voice description. ``stream``, ``language``, ``seed`` and the sampling
    settings are not in OpenAI's API.
    """

    model_config = ConfigDict(extra="forbid")

    input: str = Field(min_length=1)
    model: str
    voice: str | VoiceId = DEFAULT_VOICE
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
        """``defaults`` with the settings of the request. Raises :class:`ApiError` (400)."""
        changes = self.model_dump(include=set(SamplingConfig.model_fields), exclude_none=True)
        try:
            return SamplingConfig.parse(defaults.model_dump() | changes, "request")
        except ConfigError as error:
            raise ApiError(400, str(error)) from None


def check_request(request: SpeechRequest, card: ServingCard, config: ServerConfig) -> None:
    """Raise :class:`ApiError` for another model, long texts, and consents that have ended.

    A server may run for longer than a consent is valid, so each request checks the consents.
    """
    try:
        require_consents(card)
    except ConsentError as error:
        raise ApiError(403, str(error), "consent_ended") from None
    if request.model != card.recipe:
        message = f"no model {request.model!r}; this server has {card.recipe!r}"
        raise ApiError(404, message, "model_not_found", "model")
    for name, text in (("input", request.input), ("instructions", request.instructions)):
        if len(text) > config.max_characters:
            message = f"{name} has {len(text)} characters, at most {config.max_characters}"
            raise ApiError(400, message, "string_above_max_length", name)
