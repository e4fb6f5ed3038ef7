"""Who may come in, and what is wrong with a request, in the shape of OpenAI's errors."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tts_assets.serving.synthesis import SynthesisError

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
