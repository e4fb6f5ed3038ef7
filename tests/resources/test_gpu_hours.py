"""The cost of all programs and starts is recorded, with and without a launcher."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from resources.launcher import ATTEMPTS
from resources.slurm import Follower, Job, SlurmClient, SlurmLauncher
from resources.slurm_job import STARTS, gpus_of
from resources.torchrun import TorchrunLauncher
from tests.support.launched import count
from tts_assets.core.compute import Ledger, Shape

SHAPE = Shape(processes=1, gpus=1)


def test_programs_of_one_dagster_run_are_recorded_separately(tmp_path: Path) -> None:
    launcher = TorchrunLauncher(ledger=str(tmp_path / "ledger"))
    for asset, folder in [("serving/a", "a.x"), ("serving/b", "b.x"), ("serving/b", "b.y")]:
        program = count(tmp_path / folder / "verify", SHAPE, total=1)
        launcher.record(program, asset, "run.0", 60.0, 1)
    attempts = Ledger(tmp_path / "ledger").attempts()
    assert sorted(a.asset for a in attempts) == ["serving/a", "serving/b", "serving/b"]
    assert sum(attempt.seconds for attempt in attempts) == pytest.approx(180.0)


def test_the_accounting_reports_the_last_start(tmp_path: Path) -> None:
    """It does not say which one that is; the job's own files do."""
    write_start(tmp_path, "7.0", seconds=500)
    write_start(tmp_path, "7.1", seconds=30)
    assert followed(tmp_path, Forgetful(seconds=40)) == {"7.0": 500.0, "7.1": 40.0}


def test_the_accounting_never_decreases_recorded_seconds(tmp_path: Path) -> None:
    """Of a job whose script wrote none, which was followed through its first start."""
    program = count(tmp_path, SHAPE, total=1)
    launcher = SlurmLauncher(ledger=str(tmp_path / "ledger"))
    launcher.record(program, "sft/a", "7.0", 500.0, 1)
    assert followed(tmp_path, Forgetful(seconds=40)) == {"7.0": 500.0}


def test_starts_between_two_polls_are_recorded(tmp_path: Path) -> None:
    """Slurm shows the last of three; another job of the folder ended without a launcher."""
    for name in ("6.0", "7.0", "7.1"):
        write_start(tmp_path, name, seconds=500)
    (tmp_path / "result.json").write_text("{}")
    client = Forgetful(shown=[Job(7, "COMPLETED", starts=2, seconds=20)])
    assert followed(tmp_path, client) == {"6.0": 500.0, "7.0": 500.0, "7.1": 500.0, "7.2": 20.0}


def test_each_role_is_billed_for_the_gpus_of_its_own_nodes(tmp_path: Path) -> None:
    service = count(tmp_path / "serve", SHAPE, total=1)
    shape = Shape(nodes=2, processes=8, gpus=8)
    assert gpus_of(replace(count(tmp_path, shape, total=1), service=service)) == 16 + 1


@dataclass(frozen=True)
class Forgetful(SlurmClient):
    """Shows what is left of ``shown``; then only the accounting has the job."""

    login: tuple[str, ...] = ()
    command_seconds: float = 1.0
    warn: Callable[[str], None] = print
    seconds: int = 0
    shown: list[Job] = field(default_factory=list)

    def show(self, job: int) -> Job | None:
        return self.shown.pop(0) if self.shown else None

    def account(self, job: int) -> Job:
        return Job(job, "FAILED", seconds=self.seconds, exit_code="7:0")


def write_start(folder: Path, name: str, seconds: int) -> None:
    """As the batch script does."""
    (folder / STARTS).mkdir(exist_ok=True)
    start = {"started": 1_800_000_000, "seconds": seconds, "gpus": 1}
    (folder / STARTS / f"{name}.json").write_text(json.dumps(start))


def followed(folder: Path, client: SlurmClient) -> dict[str, float]:
    """Seconds by start in the ledger after job 7 was followed to its end."""
    program = count(folder, SHAPE, total=1)
    launcher = SlurmLauncher(ledger=str(folder / "ledger"))
    record = functools.partial(launcher.record, program, "sft/a")
    Follower(client, program, 1.0, print, record).follow(7)
    attempts = json.loads((folder / ATTEMPTS).read_text())
    in_run_folder = {name: attempt["seconds"] for name, attempt in attempts.items()}
    in_ledger = [attempt.seconds for attempt in Ledger(folder / "ledger").attempts()]
    assert sorted(in_ledger) == sorted(in_run_folder.values())
    return in_run_folder
