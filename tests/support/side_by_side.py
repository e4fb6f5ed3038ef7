"""Two assets that wait for each other: a run that makes them one after the other fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dagster import Definitions, JobDefinition, asset, define_asset_job

from tts_assets.core.compute import Compute
from tts_assets.definitions import executor_of

FOLDER = "SIDE_BY_SIDE"
SECONDS = 60.0  # at most


def meet(name: str, other: str) -> None:
    """Write a file and wait for that of the other. Raises TimeoutError."""
    folder = Path(os.environ[FOLDER])
    (folder / name).touch()
    until = time.monotonic() + SECONDS
    while not (folder / other).exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{other} does not run beside {name}")
        time.sleep(0.1)


@asset
def first() -> None:
    """Waits for the second."""
    meet("first", "second")


@asset
def second() -> None:
    """Waits for the first."""
    meet("second", "first")


def both() -> JobDefinition:
    """The job of both, as under Slurm."""
    defs = Definitions(
        assets=[first, second],
        jobs=[define_asset_job("both")],
        executor=executor_of(Compute(launcher="slurm", gpus=0)),
    )
    return defs.resolve_job_def("both")
