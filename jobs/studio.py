"""Runs of the studio, through Dagster: one command of ``tts-assets`` at a time.

The command is a process of its own, as in a terminal: it reads the project file as it is then, and
its runs are those of the instance of ``DAGSTER_HOME``, which the Dagster UI shows, too. When the
studio ends, the command is asked to stop: programs save a checkpoint first.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dagster import DagsterInstance
from fastapi import APIRouter

from jobs.asset_jobs import PREPARE
from jobs.foreground import RequestError, latest_record, tail
from jobs.ui import STOP_SECONDS
from tts_assets.core.program import progress_line
from tts_assets.corpora.discovery import check_name

LINES_SHOWN = 200
RUNS_SHOWN = 10
CONNECT_SECONDS = 0.2
PARTITION = "dagster/partition"


@dataclass(frozen=True)
class Command:
    """A started command of ``tts-assets``; ``started`` is a time in seconds since 1970."""

    title: str
    process: subprocess.Popen[bytes]
    started: float


class Runs:
    """The command that the studio started last, and the Dagster instance of the project."""

    def __init__(self, root: Path, storage: Path) -> None:
        """``root`` is the folder of the project file, ``storage`` that of the artifacts."""
        self.root, self.work = root, storage / ".work"
        self.home = Path(os.environ["DAGSTER_HOME"])
        self.log = self.home / "studio.log"
        self.last: Command | None = None

    @cached_property
    def instance(self) -> DagsterInstance:
        """The instance of ``DAGSTER_HOME``."""
        return DagsterInstance.get()

    @property
    def running(self) -> bool:
        """Whether the last command runs."""
        return self.last is not None and self.last.process.poll() is None

    def start(self, *arguments: str) -> None:
        """Start ``tts-assets`` with these arguments. Raises :class:`RequestError` if one runs."""
        if self.running:
            assert self.last is not None
            raise RequestError(f"{self.last.title} is running: wait for its end, or cancel it")
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tts_assets.cli", *arguments],
                cwd=self.root,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the studio only
            )
        self.last = Command(" ".join(arguments), process, time.time())

    def cancel(self) -> None:
        """Ask the command to stop: its programs save their state first."""
        if self.running:
            assert self.last is not None
            self.last.process.send_signal(signal.SIGINT)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Cancel the command at the end of the block, and wait until it stopped."""
        try:
            yield
        finally:
            self.cancel()
            if self.last is not None:
                self.last.process.wait(timeout=STOP_SECONDS)
            if "instance" in vars(self):
                self.instance.dispose()

    def state(self) -> dict[str, Any]:
        """Title, status, progress and last lines of the command; empty before the first."""
        if self.last is None:
            return {}
        status = self.last.process.poll()
        record = latest_record(self.work, self.last.started) if status is None else None
        return {
            "title": self.last.title,
            "status": status,
            "lines": tail(self.log, LINES_SHOWN),
            "progress": record and {**record, "text": progress_line(record)},
        }


def recent_runs(instance: DagsterInstance) -> list[dict[str, Any]]:
    """The newest runs of the instance, also those of the Dagster UI and of schedules."""
    return [
        {
            "id": record.dagster_run.run_id,
            "job": job_title(record.dagster_run.job_name),
            "corpus": record.dagster_run.tags.get(PARTITION, ""),
            "status": record.dagster_run.status.value.lower(),
            "created": record.create_timestamp.timestamp(),
        }
        for record in instance.get_run_records(limit=RUNS_SHOWN)
    ]


def job_title(name: str) -> str:
    """The name of a job; of a selection of assets, its job has none that people know."""
    return "assets" if name.startswith("__") else name


def ui_url(home: Path) -> str:
    """The address of the Dagster UI if it runs; empty if it does not."""
    path = home / "ui.address"
    if not path.is_file():
        return ""
    url = path.read_text().strip()
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_SECONDS):
            return url
    except OSError:
        return ""


def run_routes(runs: Runs) -> APIRouter:
    """Routes that start, show and cancel runs."""
    router = APIRouter(prefix="/api/runs")

    @router.get("")
    def show() -> dict[str, Any]:
        known = recent_runs(runs.instance)
        return {"command": runs.state(), "runs": known, "ui": ui_url(runs.home)}

    @router.post("")
    def start(asked: dict[str, str]) -> dict[str, Any]:
        """``{"voice": …}`` trains a voice, ``{"corpus": …}`` makes the samples of a corpus."""
        for name in asked.values():
            check_name(name, "voice or corpus")
        if asked.keys() == {"voice"}:
            runs.start("train", asked["voice"])
        elif asked.keys() == {"corpus"}:
            runs.start("run", PREPARE, "--corpus", asked["corpus"])
        else:
            raise RequestError(f"name a voice or a corpus, not {', '.join(asked) or 'nothing'}")
        return runs.state()

    @router.delete("")
    def cancel() -> dict[str, Any]:
        runs.cancel()
        return runs.state()

    return router
