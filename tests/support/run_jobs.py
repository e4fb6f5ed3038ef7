"""Definitions for tests of ``jobs/foreground.py``: a job that waits, and one whose check fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dagster import (
    AssetCheckResult,
    Definitions,
    MaterializeResult,
    asset,
    asset_check,
    define_asset_job,
    in_process_executor,
)

WAIT_SECONDS = 300.0


@asset
def waiting() -> None:
    (Path(os.environ["DAGSTER_HOME"]) / "started").touch()
    time.sleep(WAIT_SECONDS)


@asset
def checked() -> MaterializeResult[None]:
    return MaterializeResult(metadata={"reused": False, "texts": 3})


@asset_check(asset=checked, blocking=True)
def held_out() -> AssetCheckResult:
    return AssetCheckResult(passed=False, metadata={"known": ["text-1", "text-2"]})


defs = Definitions(
    assets=[waiting, checked],
    asset_checks=[held_out],
    jobs=[
        define_asset_job("wait", [waiting]),
        define_asset_job("check", [checked], tags={"purpose": "test"}),
    ],
    executor=in_process_executor,
)
