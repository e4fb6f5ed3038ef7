"""Notices on their way to a webhook: a file each, from before the first try until it is taken.

A webhook may be away for hours, while Dagster asks for each failed run once. What is kept is what
would be posted; the address is a secret, and stands in the environment alone.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tts_assets.artifacts import written_aside
from tts_assets.operations import WEBHOOK_VARIABLE

FOLDER = ".notices"
POST_SECONDS = 10.0
BETWEEN_TRIES = (1.0, 4.0)  # seconds
SEND_SECONDS = 20.0  # until the last notice of a tick; its three tries fit into the tick's 60 s


class NotTold(RuntimeError):
    """The webhook did not take a notice, which is kept."""


@dataclass(frozen=True)
class Outbox:
    """The notices that no webhook has taken yet."""

    folder: Path

    def keep(self, notice: Mapping[str, Any]) -> None:
        """For :meth:`send`; one of the same event of the same run is replaced."""
        with written_aside(self.folder / f"{notice['event']}.{notice['run_id']}.json") as aside:
            aside.write_text(json.dumps(notice))

    def send(self) -> None:
        """POST what is kept, the oldest first; raises :class:`NotTold` at the end if some stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", blocking=False):
                self._send()
        except Timeout:
            return  # the tick of another sensor is at it

    def _send(self) -> None:
        untold = None
        until = time.monotonic() + SEND_SECONDS
        for path in sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime):
            if time.monotonic() > until:
                break
            try:
                post(json.loads(path.read_text()))
            except NotTold as error:  # perhaps only of this one, which must not stop the others
                untold = error
            else:
                path.unlink()
        if untold is not None:
            left = len(list(self.folder.glob("*.json")))
            raise NotTold(f"{untold}; notices that wait for it in {self.folder}: {left}")


def post(body: Mapping[str, Any]) -> None:
    """POST to the webhook, three times if need be; raises :class:`NotTold`, without the address,
    which is a secret."""
    for wait in (*BETWEEN_TRIES, None):
        try:
            _post_once(body)
            return
        except OSError as error:  # URLError, HTTPError and time-outs
            if wait is None:
                raise NotTold(f"the webhook in {WEBHOOK_VARIABLE} answers: {error}") from None
            time.sleep(wait)
        except (ValueError, http.client.HTTPException) as error:  # their messages quote the address
            what = type(error).__name__
            raise NotTold(f"{WEBHOOK_VARIABLE} is no address of a webhook: {what}") from None


def _post_once(body: Mapping[str, Any]) -> None:
    request = urllib.request.Request(
        os.environ[WEBHOOK_VARIABLE],
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=POST_SECONDS):
        pass
