"""Requests and errors of the HTTP API, in the format of OpenAI's API.

All parameters are validated here: length and pattern of every string, ranges of all numbers. No
other place needs to handle infinite numbers, lone surrogates or unbounded strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException

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
