"""What the studio plays and links: report pages, syntheses of checkpoints, and typed texts.

Texts are spoken by the speech server (``tts_assets/serving/server.py``) of one voice at a time. It
runs beside the studio on a free port of this machine, with a random key that only the studio has.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, StreamingResponse

from jobs.foreground import RequestError
from tts_assets.core.processes import LOOPBACK, Patience, Server, ServerDied, free_port
from tts_assets.corpora.discovery import check_name

PAGES = {  # files of the current artifacts, by kind of asset
    "report": "report.html",
    "comparison": "comparison.html",
    "effect": "effect.html",
    "codec_report": "report.html",
    "comparison (blind test)": "blind.html",
}
ONE_VOICE = ("*/all", "*/*/all", "all")  # below the folder of the kind: names and the partition
LISTENING, LIST_FILE = "listening", "samples.jsonl"  # of sft/sampling.py
START_SECONDS = 600.0
ANSWER_SECONDS = 300.0
CHUNK = 16_384  # bytes


def pages(storage: Path) -> list[dict[str, str]]:
    """The pages of the current reports and comparisons: ``title``, and ``path`` in the storage."""
    found = []
    for kind, name in PAGES.items():
        folder = storage / kind.split()[0]
        for pattern in ONE_VOICE:
            for page in sorted(folder.glob(f"{pattern}/current/{name}")):
                below = page.relative_to(folder).parts[:-3]  # without partition, link and file
                title = " ".join([kind, *below])
                found.append({"title": title, "path": page.relative_to(storage).as_posix()})
    return found


def checkpoint_folder(storage: Path, recipe: str) -> Path | None:
    """The folder of syntheses of the newest training of a recipe, finished or not."""
    check_name(recipe, "recipe")
    lists = [
        storage / "sft" / recipe / "all" / "current" / LISTENING / LIST_FILE,
        *storage.glob(f".work/sft.{recipe}.all.*/result/{LISTENING}/{LIST_FILE}"),
    ]
    written = {path: path.stat().st_mtime for path in lists if path.is_file()}
    newest = max(written, key=lambda path: written[path], default=None)
    return newest and newest.parent


def checkpoints(folder: Path | None) -> list[dict[str, Any]]:
    """The syntheses in the order of their steps; step 0 has the recordings."""
    if folder is None:
        return []
    lines = [json.loads(line) for line in (folder / LIST_FILE).read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["number"]))


class Speaker:
    """The speech server of one voice."""

    def __init__(self) -> None:
        self.voice = ""
        self.server: Server | None = None
        self.key = secrets.token_urlsafe()
        self._running = ExitStack()

    def start(self, voice: str, model: Path) -> None:
        """Start the server of the serving model in the folder ``model``; an earlier one ends."""
        self.close()
        port = free_port()
        command = [
            *(sys.executable, "-m", "tts_assets.serving.server"),
            *("--model", str(model), "--host", LOOPBACK, "--port", str(port)),
        ]
        environment = {**os.environ, "TTS_API_KEY": self.key}
        patience = Patience(START_SECONDS, restarts=0)
        url = f"http://{LOOPBACK}:{port}"
        self.server = Server(command, url, patience, lambda _: None, environment)
        self.voice = voice
        self._running.enter_context(self.server.running())

    def close(self) -> None:
        """End the server."""
        self.voice, self.server = "", None
        self._running.close()

    def state(self) -> dict[str, Any]:
        """``voice`` and ``state``: none, starting, ready with ``speakers``, or failed."""
        if self.server is None:
            return {"voice": "", "state": "none"}
        try:
            ready = self.server.check()
        except ServerDied as error:
            return {"voice": self.voice, "state": "failed", "message": str(error)}
        if not ready:
            return {"voice": self.voice, "state": "starting"}
        speakers = [row["id"] for row in self._json("/v1/voices")["data"]]
        return {"voice": self.voice, "state": "ready", "speakers": speakers}

    def speech(self, text: str, speaker: str) -> Iterator[bytes]:
        """The speech of a text as MP3, while it is synthesized. Raises :class:`RequestError`."""
        model = self._json("/v1/models")["data"][0]["id"]
        asked = {"input": text, "model": model, "voice": speaker, "stream": True}
        answer = self._open("/v1/audio/speech", json.dumps(asked).encode())
        return chunks(answer)

    def _json(self, path: str) -> dict[str, Any]:
        with self._open(path) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def _open(self, path: str, body: bytes | None = None) -> HTTPResponse:
        if self.server is None:
            raise RequestError("no voice is loaded: choose one, and load it")
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server.url}{path}", body, headers)
        try:
            answer: HTTPResponse = urllib.request.urlopen(request, timeout=ANSWER_SECONDS)
        except urllib.error.HTTPError as error:
            raise RequestError(json.load(error)["error"]["message"]) from None
        except urllib.error.URLError:
            raise RequestError(f"{self.voice} is not loaded yet: wait until it is ready") from None
        return answer


def chunks(answer: HTTPResponse) -> Iterator[bytes]:
    """Yield the body of an answer as it arrives."""
    with answer:
        while chunk := answer.read1(CHUNK):
            yield chunk


def listening_routes(
    storage: Path, model_of: Callable[[str], Path], speaker: Speaker, files: str
) -> APIRouter:
    """Routes of pages, checkpoints and speech.

    ``model_of`` gives the folder of a voice's serving model. ``files`` is the address of the
    storage's files without the host, such as ``:3003/``; empty if they are not served.
    """
    router = APIRouter(prefix="/api")

    @router.get("/pages")
    def all_pages() -> dict[str, Any]:
        return {"files": files, "pages": pages(storage) if files else []}

    @router.get("/checkpoints/{recipe}")
    def syntheses(recipe: str) -> list[dict[str, Any]]:
        return checkpoints(checkpoint_folder(storage, recipe))

    @router.get("/checkpoints/{recipe}/{name}")
    def synthesis(recipe: str, name: str) -> FileResponse:
        folder = checkpoint_folder(storage, recipe)
        if folder is None or name not in {line["audio"] for line in checkpoints(folder)}:
            raise FileNotFoundError(f"the training of {recipe} has no synthesis {name!r}")
        return FileResponse(folder / name, media_type="audio/flac")

    @router.get("/speech")
    def state() -> dict[str, Any]:
        return speaker.state()

    @router.post("/speech")
    def load(asked: dict[str, str]) -> dict[str, Any]:
        """Load the voice ``voice``; an empty name unloads the last one."""
        voice = asked.get("voice", "")
        if voice:
            speaker.start(voice, model_of(voice))
        else:
            speaker.close()
        return speaker.state()

    @router.get("/speech/audio")
    def speech(text: str, speaker_name: str) -> StreamingResponse:
        return StreamingResponse(speaker.speech(text, speaker_name), media_type="audio/mpeg")

    return router
