"""Dagster's view of the run folder in which a program works: its log and its Pipes messages."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster import PipesMessageHandler, PipesMessageReader

from tts_assets.artifacts import written_aside

LOG = "log.txt"
MESSAGES = "pipes.jsonl"
FOLLOWED = "followed.json"
READ_SECONDS = 0.5
MOST_BYTES = 1 << 20  # a read: what a program printed while nobody followed may be long


class Lines:
    """The complete lines that a growing file has gained since they were last asked for.

    It is opened anew each time: on NFS only an open sees what another machine wrote.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = path, offset

    def read(self) -> list[bytes]:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                block = stream.read(MOST_BYTES)
        except FileNotFoundError:
            return []
        end = len(block) if len(block) == MOST_BYTES else block.rfind(b"\n") + 1
        self.offset += end
        return block[:end].splitlines(keepends=True)


class RunFolderReader(PipesMessageReader):
    """Reads ``pipes.jsonl``, and copies ``log.txt`` to Dagster's compute log, as they grow.

    It goes on where the last reader of this folder stopped, which ``followed.json`` tells: a
    Dagster process that takes over from a killed one shows each line once. A program that is
    requeued opens and closes Pipes several times; Dagster hears of the first and the last.
    """

    def __init__(self, run_dir: Path) -> None:
        self.followed = run_dir / FOLLOWED
        try:
            offsets = json.loads(self.followed.read_text())
        except FileNotFoundError:
            offsets = {}
        self.log = Lines(run_dir / LOG, offsets.get("log", 0))
        self.messages = Lines(run_dir / MESSAGES, offsets.get("messages", 0))
        self._ended = threading.Event()
        self._opened = False
        self._closed: Any = None

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[dict[str, Any]]:
        thread = threading.Thread(target=self._follow, args=(handler,), daemon=True)
        self._reopen(handler)
        thread.start()
        try:
            yield {"path": str(self.messages.path)}
        finally:
            self._ended.set()
            thread.join()
            if self._closed is not None:
                handler.handle_message(self._closed)

    def no_messages_debug_text(self) -> str:
        return f"Messages are read from {self.messages.path}."

    def _reopen(self, handler: PipesMessageHandler) -> None:
        """Of the messages that an earlier reader has seen, only that Pipes was opened matters."""
        seen = Lines(self.messages.path)
        while seen.offset < self.messages.offset and (lines := seen.read()):
            for line in lines:
                if b'"opened"' in line:
                    self._handle(handler, line)

    def _follow(self, handler: PipesMessageHandler) -> None:
        last = False
        while True:
            more = self._copy(handler)
            if last and not more:
                return
            last = self._ended.is_set()  # after the end, all that is there is read
            if not more:
                self._ended.wait(READ_SECONDS)

    def _copy(self, handler: PipesMessageHandler) -> bool:
        lines, messages = self.log.read(), self.messages.read()
        for line in lines:
            sys.stderr.write(line.decode(errors="replace"))
        for message in messages:
            self._handle(handler, message)
        if lines or messages:
            with written_aside(self.followed) as aside:
                offsets = {"log": self.log.offset, "messages": self.messages.offset}
                aside.write_text(json.dumps(offsets))
        return bool(lines or messages)

    def _handle(self, handler: PipesMessageHandler, line: bytes) -> None:
        try:
            message = json.loads(line)
        except json.JSONDecodeError:  # the program was killed while it wrote
            print(f"{self.messages.path}: not a message: {line!r}", file=sys.stderr)
            return
        if message["method"] == "closed":
            self._closed = message
        elif message["method"] != "opened" or not self._opened:
            self._opened |= message["method"] == "opened"
            handler.handle_message(message)
