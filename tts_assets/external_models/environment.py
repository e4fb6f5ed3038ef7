"""Runs a job of an external model in the environment of coqui-tts, and forwards its events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tts_assets.core.config import ConfigError
from tts_assets.core.processes import reap
from tts_assets.core.program import Run
from tts_assets.external_models.coqui import (
    PROGRAM,
    REFUSED,
    SynthesisJob,
    TrainJob,
    write_job,
)

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.5
GRACE_SECONDS = 300.0  # for a training step and its checkpoint
Event = dict[str, Any]


class DriverFailed(RuntimeError):
    """The program in the other environment failed; the log has its error message."""


def run_job(
    run: Run, python: Path, job: TrainJob | SynthesisJob, what: str, total: int
) -> list[Event]:
    """Run ``job`` in the environment of ``python``.

    Metrics, notes and progress (of ``total`` items) go to ``run``; the return value has all events
    but progress. A stop request is forwarded and then stops this run. Raises :class:`ConfigError`
    for an unsuitable environment or a job that is refused, :class:`DriverFailed` for other errors.
    """
    path = Path(job.events)
    path.unlink(missing_ok=True)
    process = start(run.run_dir, python, job, what)
    events: list[Event] = []
    try:
        done = steps(forwarded(run, process, path, events))
        for _ in run.progress(done, what, total=total):
            pass
    finally:
        process.terminate()
        reap(process, GRACE_SECONDS)
    if process.returncode != 0 and run.stop_requested:
        run.stopped()
    if process.returncode == REFUSED:
        raise ConfigError(next((e["note"] for e in reversed(events) if "note" in e), what))
    if process.returncode != 0:
        raise DriverFailed(f"{what}: the program of {python} ended with {process.returncode}")
    return events


def forwarded(
    run: Run, process: subprocess.Popen[Any], path: Path, events: list[Event]
) -> Iterator[Event]:
    """Yields events until the program ends; appends all but progress to ``events``."""
    known = 0
    while True:
        ended = process.poll() is not None
        if run.stop_requested:
            process.send_signal(signal.SIGTERM)
        fresh = new_events(path, known)
        known += len(fresh)
        for event in fresh:
            if "metrics" in event:
                run.metrics(event["step"], event["metrics"])
            elif "note" in event:
                run.note(event["note"])
            if "done" not in event:
                events.append(event)
            yield event
        if ended:
            return
        time.sleep(POLL_SECONDS)


def steps(events: Iterator[Event]) -> Iterator[int]:
    """Each number of finished items once, also if an event skips some."""
    done = 0
    for event in events:
        while done < event.get("done", 0):
            done += 1
            yield done


def start(
    folder: Path, python: Path, job: TrainJob | SynthesisJob, what: str
) -> subprocess.Popen[Any]:
    """Start the program for ``job``. It can import this checkout, but not our environment."""
    check_environment(python)
    path = folder / f"{what}.json"
    write_job(path, job)
    program = "train" if isinstance(job, TrainJob) else "synthesize"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONHOME", None)
    return subprocess.Popen(
        [str(python), "-m", PROGRAM, program, str(path)],
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def check_environment(python: Path) -> None:
    """Raise :class:`ConfigError` unless ``python`` is an interpreter with coqui-tts."""
    remedy = "name that of an environment with coqui-tts (docs/external_models.md)"
    if not python.is_file():
        raise ConfigError(f"external_models.python: {python} is no interpreter; {remedy}")
    command = "import importlib.util, sys; sys.exit(importlib.util.find_spec('TTS') is None)"
    if subprocess.run([str(python), "-I", "-c", command], check=False).returncode:
        raise ConfigError(f"external_models.python: {python} has no coqui-tts; {remedy}")


def new_events(path: Path, known: int) -> list[Event]:
    """The events after the first ``known``, without a line that is not complete yet."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines[known:]]
