"""The studio: a local web page for the recordings and voices of a project.

``tts-assets studio`` serves it on 127.0.0.1. On another address every request needs a key, which
the printed URL carries; the browser keeps it as a cookie. Web pages of other origins can neither
read nor change anything: the Host header must be known, browsers say where a request comes from
(``Sec-Fetch-Site``), and changes need the token of the page.

The page is plain HTML, CSS and JavaScript beside this file: nothing is built or downloaded.
"""

from __future__ import annotations

import hmac
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from datetime import date
from functools import lru_cache
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs

import polars as pl
import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import model_validator
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.foreground import RequestError
from jobs.listening import Speaker, listening_routes
from jobs.studio import Runs, run_routes
from jobs.ui import is_free, serve_files
from tts_assets.cli import CommandError
from tts_assets.cli.clips import SHOWN, audio_file, clip_table, outline_file
from tts_assets.cli.models import model_of
from tts_assets.cli.scaffold import (
    UPLOADED,
    consent_values,
    declare_upload,
    upload_folder,
    upload_target,
)
from tts_assets.core.artifacts import ArtifactError, ArtifactStore, atomic_write
from tts_assets.core.audio import BrokenAudio
from tts_assets.core.config import Config, ConfigError
from tts_assets.corpora.config import SYNTHETIC, Consent, ReaderName
from tts_assets.corpora.corrections import Correction, Corrections
from tts_assets.corpora.discovery import check_name
from tts_assets.project_file import project_file
from tts_assets.settings import Settings, load_settings

HERE = Path(__file__).parent
LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE, TOKEN_HEADER = "studio_key", "x-studio-token"
TOKEN_MARK, SUFFIX_MARK = "{{token}}", "{{suffixes}}"  # in studio.html
STATIC = {"studio.js": "text/javascript", "studio.css": "text/css"}
MOST_CLIPS = 100  # of one answer
POLICY = ("default-src 'self'", "img-src 'self' data:", "frame-ancestors 'none'", "base-uri 'none'")
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

router = APIRouter(prefix="/api")


class Guard:
    """ASGI middleware that rejects requests without the key, and those of other web pages."""

    def __init__(self, app: ASGIApp, key: str, token: str) -> None:
        """``key`` empty: no key is needed. ``token``: what requests that change something send."""
        self.app, self.key, self.token = app, key, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error, or call the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        await (self._refusal(scope, headers) or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if self.key and scope["path"] == "/" and same(given, self.key):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self.key, httponly=True, samesite="strict")
            return answer
        if self.key and not any(same(one, self.key) for one in keys_of(headers)):
            return problem("open the address that tts-assets studio printed: it has the key", 401)
        outside = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if outside and (scope["path"] != "/" or headers.get("sec-fetch-mode") != "navigate"):
            return problem("requests of other web pages are refused", 403)
        changes = scope["method"] not in ("GET", "HEAD")
        if changes and not same(headers.get(TOKEN_HEADER, ""), self.token):
            return problem("the token of the page is missing: load the page again", 403)
        return None


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not depend on them."""
    return hmac.compare_digest(one.encode(), other.encode())


def keys_of(headers: Mapping[str, str]) -> list[str]:
    """The keys that a request has: that of its cookie, and that of its Authorization header."""
    cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    return [one for one in (cookie.value if cookie else "", bearer) if one]


def problem(message: str, status: int = 400) -> JSONResponse:
    """An error as JSON: ``{"error": message}``."""
    return JSONResponse({"error": message}, status)


def studio_app(key: str = "", token: str = "", files: str = "") -> FastAPI:
    """The application for the project of this process.

    ``key``: what requests need, empty on loopback only. ``token``: of the page; default: random.
    ``files`` as in ``jobs/listening.py``. Runs and servers that it started end with it.
    """
    settings = current_settings()
    runs, speaker = Runs(settings.root, settings.storage), Speaker()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with runs.ended(), closing(speaker):
            yield

    token = token or secrets.token_urlsafe()
    app = FastAPI(title="tts-assets studio", lifespan=lifespan, openapi_url=None)
    app.include_router(run_routes(runs))
    storage = settings.storage
    app.include_router(listening_routes(storage, model_of, speaker, files))
    if not key:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    app.add_middleware(Guard, key=key, token=token)
    for error, status in (
        *((ConfigError, 400), (CommandError, 400), (RequestError, 400), (BrokenAudio, 422)),
        *((ArtifactError, 409), (FileNotFoundError, 404)),
    ):
        app.add_exception_handler(error, lambda _, raised, s=status: problem(str(raised), s))

    @app.middleware("http")
    async def with_headers(request: Request, call_next: Any) -> Response:
        answer: Response = await call_next(request)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    @app.get("/")
    def page() -> HTMLResponse:
        text = (HERE / "studio.html").read_text(encoding="utf-8")
        suffixes = "|".join(suffix.replace(".", "\\.") for suffix in sorted(UPLOADED))
        return HTMLResponse(text.replace(TOKEN_MARK, token).replace(SUFFIX_MARK, f"({suffixes})$"))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            return problem("no such file", 404)
        return FileResponse(HERE / name, media_type=STATIC[name])

    app.include_router(router)
    return app


def current_settings() -> Settings:
    """The settings of the project file as it is now."""
    path = project_file()
    return settings_at(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def settings_at(path: Path, changed: int) -> Settings:
    """The settings of a project file that was ``changed`` at this time, in nanoseconds."""
    return load_settings(path)


def store_of_project() -> ArtifactStore:
    """The artifacts of the project."""
    return ArtifactStore(current_settings().storage)


@router.get("/corpora")
def corpora() -> list[dict[str, Any]]:
    """All corpora: their configuration, and the figures of what was made of them."""
    settings, store = current_settings(), store_of_project()
    found, _ = settings.all_corpora.find()
    rows = []
    for name, (path, config) in found.items():
        row = {
            **{"name": name, "path": str(path), "reader": config.reader},
            **{"language": config.language, "licence": config.licence},
            "consent": in_words(config.consent),
        }
        try:
            facts = store.current("filtered_samples", name).facts.model_dump()
        except ArtifactError:
            facts = {}
        rows.append(row | {key: facts.get(key) for key in ("kept", "rejected", "hours")})
    return rows


def in_words(consent: Consent | str | None) -> str:
    """What a consent permits, in one line."""
    if consent is None:
        return "none: no model is published"
    return consent.in_words() if isinstance(consent, Consent) else "synthetic voice"


@router.get("/voices")
def voices() -> list[dict[str, Any]]:
    """The voices, and the recipes that are no candidate of one, with what each is trained on."""
    settings = current_settings()
    candidates = {name: one.candidates for name, one in settings.promotion.items()}
    known = {recipe for recipes in candidates.values() for recipe in recipes}
    alone = {name: (name,) for name in settings.stage_of if name not in known}
    return [
        {
            "name": name,
            "recipes": list(recipes),
            "model": has_model(name),
            "corpora": sorted({c for one in recipes for c in settings.training_corpora(one)}),
        }
        for name, recipes in (candidates | alone).items()
    ]


def has_model(voice: str) -> bool:
    """Whether a voice or a recipe has a serving model."""
    try:
        return model_of(voice).is_dir()
    except CommandError:
        return False


class NewCorpus(Config):
    """What the page says about uploaded recordings.

    ``consent``: of a person, ``who`` agreed to which ``purpose``; ``synthetic``: not the voice of a
    person; ``nobody``: no model is published.
    """

    name: str
    language: str
    speaker: str = ""
    licence: str = "all rights reserved"
    reader: ReaderName | None = None
    consent: Literal["person", "synthetic", "nobody"]
    who: str = ""
    purpose: str = ""
    until: date | None = None
    publication: bool = False

    @model_validator(mode="after")
    def _names_the_person(self) -> Self:
        if self.consent == "person" and not (self.who.strip() and self.purpose.strip()):
            raise ValueError("write who agreed, and to which use")
        return self

    def values(self) -> dict[str, Any]:
        """The values of ``[corpora.<name>]``."""
        consent: dict[str, Any] | str | None = None
        if self.consent == "synthetic":
            consent = SYNTHETIC
        elif self.consent == "person":
            consent = consent_values(self.who, self.purpose, self.until, self.publication)
        return {
            **{"language": self.language, "licence": self.licence},
            **{"speaker": self.speaker or self.name, "consent": consent},
        }


@router.put("/uploads/{corpus}/{path:path}")
async def upload(corpus: str, path: str, request: Request) -> dict[str, int]:
    """Store a file for a new corpus; the body has its bytes. Returns their number."""
    root, size = current_settings().root, int(request.headers.get("content-length", 0))
    with atomic_write(upload_target(root, corpus, path, size)) as aside, aside.open("wb") as file:
        async for chunk in request.stream():
            file.write(chunk)
        return {"bytes": file.tell()}


@router.delete("/uploads/{corpus}")
def discard(corpus: str) -> dict[str, Any]:
    """Delete the files of an upload that is not declared."""
    shutil.rmtree(upload_folder(current_settings().root, corpus), ignore_errors=True)
    return {}


@router.post("/corpora")
def add_corpus(values: dict[str, Any]) -> dict[str, Any]:
    """Declare the files of an upload as a corpus. Returns what was found in them."""
    new = NewCorpus.parse({key: one for key, one in values.items() if one != ""}, "new corpus")
    return declare_upload(project_file(), new.name, new.reader, new.values()).facts()


@router.get("/corpora/{corpus}/clips")
def clips(corpus: str, offset: int = 0, search: str = "") -> dict[str, Any]:
    """Up to :data:`MOST_CLIPS` clips from ``offset`` on, the most suspect first."""
    check_name(corpus)
    store = store_of_project()
    table = clip_table(store, corpus)
    if search:
        wanted = pl.any_horizontal(
            pl.col("text", "transcript", "id", "speaker").str.contains(search, literal=True)
        )
        table = table.filter(wanted)
    shown = table.slice(max(0, offset), MOST_CLIPS)
    suspect = int((table["suspicion"] > 0).sum())
    layer = Corrections.of(current_settings().root, corpus)
    rows = [with_correction(row, layer) for row in shown.select(*SHOWN, "suspicion").to_dicts()]
    return {
        **{"clips": rows, "total": len(table), "suspect": suspect, "size": MOST_CLIPS},
        **{"version": len(layer.lines), "corrected": len(layer.current)},
        "pending": layer.pending(store, corpus),
    }


def with_correction(row: dict[str, Any], layer: Corrections) -> dict[str, Any]:
    """The row of a clip as corrected now, whether the samples were made again or not."""
    line = layer.current.get(row["id"])
    text = (line and line.text) or layer.source_text(row["id"]) or row["text"]
    return {**row, "text": text, "corrected": line is not None, "dropped": bool(line and line.drop)}


@router.post("/corpora/{corpus}/corrections")
def correct(corpus: str, change: dict[str, Any]) -> dict[str, Any]:
    """Correct or drop a clip: ``id`` with ``text`` or ``drop``; with neither it is restored.

    Returns its row, and whether the samples are to be made again. Raises :class:`ConfigError` for
    another change.
    """
    check_name(corpus)
    store = store_of_project()
    row = clip_row(store, corpus, str(change.get("id")))
    layer = Corrections.of(current_settings().root, corpus)
    was = with_correction(row, layer)["text"]
    asked = Correction.parse({**change, "was": was}, "correction")
    if asked.text == (layer.source_text(asked.id) or row["text"]):
        asked = asked.model_copy(update={"text": None})
    layer = layer.add(asked)
    clip = with_correction({key: row[key] for key in SHOWN}, layer)
    return {"clip": clip, "pending": layer.pending(store, corpus)}


@router.get("/corpora/{corpus}/clips/{name}")
def clip_file(corpus: str, name: str) -> FileResponse:
    """The audio of a clip, ``<id>.flac``, or its waveform, ``<id>.svg``."""
    check_name(corpus)
    store = store_of_project()
    clip, _, kind = name.rpartition(".")
    row = clip_row(store, corpus, clip)
    make = {"flac": audio_file, "svg": outline_file}.get(kind)
    if make is None:
        raise FileNotFoundError(f"clips have .flac and .svg, no .{kind}")
    return FileResponse(
        make(store, corpus, row), headers={"Cache-Control": "private, max-age=86400"}
    )


def clip_row(store: ArtifactStore, corpus: str, clip: str) -> dict[str, Any]:
    """The row of a clip. Raises FileNotFoundError if the corpus has none of this id."""
    rows = clip_table(store, corpus).filter(pl.col("id") == clip)
    if not len(rows):
        raise FileNotFoundError(f"{corpus} has no clip {clip!r}")
    return rows.row(0, named=True)


def serve_studio(host: str, port: int) -> None:
    """Serve the studio until SIGINT or SIGTERM, and the files of the storage at the next port.

    Prints its address, with the key if it has one. Raises :class:`CommandError` for a used port.
    """
    for used in (port, port + 1):
        if not is_free(used):
            raise CommandError(f"port {used} is in use: choose another with --port")
    key = "" if host in LOOPBACK else os.environ.get("TTS_API_KEY") or secrets.token_urlsafe()
    secret = secrets.token_urlsafe() if key else ""
    serve_files(current_settings().storage, port + 1, host, secret)
    app = studio_app(key, files=f":{port + 1}/{secret}")
    print(f"studio at http://{host}:{port}/{f'?key={key}' if key else ''}", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", ws="none")
