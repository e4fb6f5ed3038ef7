"""Checks of a request before the application reads it: API key and size."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tts_assets.serving.schemas import ApiError

OPEN_PATHS = ("/health",)  # probes have no key


class RequestGuard:
    """ASGI middleware that rejects requests with a wrong key or a large body."""

    def __init__(self, app: ASGIApp, key: str, max_bytes: int) -> None:
        """``key`` empty: no key is needed. ``max_bytes`` bounds the body."""
        self.app, self.key, self.max_bytes = app, key, max_bytes

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
        if self.key and path not in OPEN_PATHS and not hmac.compare_digest(given, expected):
            return ApiError(401, "missing or wrong API key", "invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_bytes:
            return ApiError(413, self._too_large(), "request_too_large")
        return None

    def _too_large(self) -> str:
        return f"the request is larger than {self.max_bytes / 2**20:g} MB"
