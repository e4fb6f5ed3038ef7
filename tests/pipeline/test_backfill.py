"""Backfills from the command line, through the real daemon: all corpora, then a recipe, twice.

Programs run in the processes of their runs: what is launched otherwise has tests of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from dagster import (
    AssetKey,
    AssetRecordsFilter,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    EventLogRecord,
    RunsFilter,
)

from jobs.foreground import register_corpora
from tests.sensors.test_training import two_voices

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PATIENCE = 600.0
DEFINITIONS = ("-m", "tests.support.in_process")
RECIPE = 'key:"sft/spoken"'


@dataclass
class Checkout:
    """Commands as a person types them, in an environment of its own."""

    environment: dict[str, str]
    instance: DagsterInstance

    def dagster(self, *arguments: str) -> None:
        subprocess.run(
            [BIN / "dagster", *arguments],
            cwd=ROOT,
            env=self.environment,
            check=True,
            timeout=PATIENCE,
        )

    def backfill(self, *which: str) -> None:
        """``dagster job backfill`` of both corpora; returns when its runs have succeeded."""
        self.dagster("job", "backfill", *DEFINITIONS, "-j", "refresh", "--noprompt", *which)
        (newest, *_) = self.instance.get_backfills()
        filters = RunsFilter(tags={"dagster/backfill": newest.backfill_id})
        deadline = time.monotonic() + PATIENCE
        while not ended(runs := self.instance.get_runs(filters), 2):
            assert time.monotonic() < deadline, "the daemon does not end the backfill"
            time.sleep(0.5)
        assert all(run.status == DagsterRunStatus.SUCCESS for run in runs)

    def records(self, asset: str) -> list[EventLogRecord]:
        """All materializations, the newest first."""
        key = AssetKey(asset.split("/"))
        return list(
            self.instance.fetch_materializations(AssetRecordsFilter(key), limit=100).records
        )

    def made(self, *assets: str) -> dict[str, int]:
        """How often each was made, and not taken over. Who asked for it, a backfill or the
        automation that the daemon ticks beside it, is all the same."""
        return {asset: sum(not reused(r) for r in self.records(asset)) for asset in assets}


def reused(record: EventLogRecord) -> bool:
    assert record.asset_materialization is not None
    return bool(record.asset_materialization.metadata["reused"].value)


def ended(runs: Sequence[DagsterRun], expected: int) -> bool:
    return len(runs) == expected and all(run.is_finished for run in runs)


@contextmanager
def daemon(environment: dict[str, str]) -> Iterator[None]:
    command = [BIN / "dagster-daemon", "run", *DEFINITIONS]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=120)


@pytest.fixture
def checkout(clips: Path, tmp_path: Path) -> Iterator[Checkout]:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(ROOT / ".dagster" / "dagster.yaml", home)
    settings = two_voices(tmp_path / "project", clips)
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "TTS_PROJECT": str(settings.root / "project.toml"),
        "TTS__COMPUTE__PROCESSES": "1",
        "PYTHONPATH": str(ROOT),
    }
    with DagsterInstance.from_config(str(home)) as instance:
        register_corpora(instance, settings)
        with daemon(environment):
            yield Checkout(environment, instance)


@pytest.mark.slow
def test_a_repeated_backfill_does_no_work(checkout: Checkout) -> None:
    materialize = ("asset", "materialize", *DEFINITIONS, "--select", RECIPE)
    corpora = ("raw_corpus", "filtered_samples", "codec_shards", "code_arrays", "token_arrays")
    assets = (*corpora, "sft/spoken")
    checkout.backfill("--all", "_")
    checkout.dagster(*materialize)
    made = checkout.made(*assets)
    assert made == {"sft/spoken": 1, **dict.fromkeys(corpora, 2)}

    before = {asset: len(checkout.records(asset)) for asset in assets}
    checkout.backfill("--partitions", "spoken,other")
    checkout.dagster(*materialize)
    assert checkout.made(*assets) == made
    for asset, count in before.items():
        assert len(checkout.records(asset)) > count, f"{asset} was not asked for again"
