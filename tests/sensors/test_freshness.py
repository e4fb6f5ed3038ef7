"""Freshness of reports, evaluated by Dagster's daemon."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateRecord
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget

from tts_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
DAY = 24 * 3600.0


def seen(workspace: WorkspaceProcessContext, asset: AssetKey, days: float) -> FreshnessState:
    """The daemon's evaluation of an asset's freshness in so many days."""
    from dagster._core.test_utils import freeze_time
    from dagster._daemon.freshness import FreshnessDaemon

    with freeze_time(time.time() + days * DAY):
        list(FreshnessDaemon().run_iteration(workspace))
        context = workspace.create_request_context()
        record = asyncio.run(FreshnessStateRecord.gen(context, asset))
    assert record is not None
    return record.freshness_state


@pytest.mark.slow
def test_freshness_of_a_report_over_time(tmp_path: Path) -> None:
    target = ModuleTarget("tts_assets.definitions", None, str(ROOT), "tts")
    report, trained = AssetKey(["report", "announcer"]), AssetKey(["sft", "announcer"])
    days = load_settings(environment={}).schedules.report_days
    with (
        DagsterInstance.local_temp(str(tmp_path)) as instance,
        WorkspaceProcessContext(instance, target) as workspace,
    ):
        assert seen(workspace, report, 0) == FreshnessState.UNKNOWN
        for asset in (report, trained):
            instance.report_runless_asset_event(AssetMaterialization(asset))
        assert seen(workspace, report, days - 1) == FreshnessState.PASS
        assert seen(workspace, report, days + 1) == FreshnessState.WARN
        assert seen(workspace, report, 2 * days + 1) == FreshnessState.FAIL
        assert seen(workspace, trained, 2 * days + 1) == FreshnessState.NOT_APPLICABLE
        instance.report_runless_asset_event(AssetMaterialization(report))
        assert seen(workspace, report, 0) == FreshnessState.PASS
