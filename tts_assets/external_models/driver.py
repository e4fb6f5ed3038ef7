"""A program of the environment with coqui-tts, started and heard by one of ours."""

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
from tts_assets.external_models.coqui.job import REFUSED, SpeakJob, TrainJob, write_job

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.5
GRACE_SECONDS = 300.0  # to finish a step of training and save it
Event = dict[str, Any]


class DriverFailed(RuntimeError):
    """The other environment's program ended with an error, which the log above has."""


def drive(run: Run, python: Path, job: TrainJob | SpeakJob, what: str, total: int) -> list[Event]:
    """Do ``job`` in the other environment; its metrics, notes and progress are this run's.

    Returns its other events. A request to stop is passed on, and ends this run, too. Raises
    :class:`ConfigError` where the environment or the job cannot be.
    """
    events = Path(job.events)
    events.unlink(missing_ok=True)
    process = start(run.run_dir, python, job, what)
    told: list[Event] = []
    try:
        done = steps(heard(run, process, events, told))
        for _ in run.progress(done, what, total=total):
            pass
    finally:
        process.terminate()
        reap(process, GRACE_SECONDS)
    if process.returncode != 0 and run.stop_requested:
        run.stopped()
    if process.returncode == REFUSED:
        raise ConfigError(next((e["note"] for e in reversed(told) if "note" in e), what))
    if process.returncode != 0:
        raise DriverFailed(f"{what}: the program of {python} ended with {process.returncode}")
    return told


def heard(
    run: Run, process: subprocess.Popen[Any], path: Path, told: list[Event]
) -> Iterator[Event]:
    """Events as they come, until the program ends; all but progress are kept in ``told``."""
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
                told.append(event)
            yield event
        if ended:
            return
        time.sleep(POLL_SECONDS)


def steps(events: Iterator[Event]) -> Iterator[int]:
    """Each number of done items once, however far apart they are told."""
    done = 0
    for event in events:
        while done < event.get("done", 0):
            done += 1
            yield done


def start(folder: Path, python: Path, job: TrainJob | SpeakJob, what: str) -> subprocess.Popen[Any]:
    """The program for ``job``: it sees this checkout, and nothing of our environment."""
    check_environment(python)
    path = folder / f"{what}.json"
    write_job(path, job)
    program = "train" if isinstance(job, TrainJob) else "speak"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONHOME", None)
    return subprocess.Popen(
        [str(python), "-m", f"tts_assets.external_models.coqui.{program}", str(path)],
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def check_environment(python: Path) -> None:
    """Raise :class:`ConfigError` unless it is the interpreter of an environment with coqui-tts."""
    wanted = "name that of an environment with coqui-tts (docs/families.md)"
    if not python.is_file():
        raise ConfigError(f"families.python: {python} is no interpreter; {wanted}")
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('TTS') is None)"
    if subprocess.run([str(python), "-I", "-c", look], check=False).returncode:
        raise ConfigError(f"families.python: {python} has no coqui-tts; {wanted}")


def new_events(path: Path, known: int) -> list[Event]:
    """Those after the first ``known``; a line that is still being written is left for later."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines[known:]]
