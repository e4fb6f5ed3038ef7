"""The torchrun launcher on real torchrun: results, failures, cancellation, resume."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil
import pytest

from resources.launcher import Program
from resources.torchrun import TorchrunLauncher
from tests.support.launched import count, failure, launch, metadata
from tests.support.roles import RoleConfig
from tts_assets.core.compute import Ledger, Shape

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds until a test gives up


def start(run_dir: Path, grace: float = 20.0, **config: object) -> subprocess.Popen[str]:
    values = {
        "config": {"run_dir": str(run_dir), **config},
        "shape": {"processes": 2},
        "launcher": {"grace_seconds": grace},
    }
    command = [sys.executable, "-m", "tests.support.launched", json.dumps(values)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def worker_pids(run_dir: Path, deadline_seconds: float = PATIENCE) -> list[int]:
    """The pids of both ranks, once both have started."""
    deadline = time.monotonic() + deadline_seconds
    while time.monotonic() < deadline:
        pids = [path.read_text() for path in run_dir.glob("pid.*")]
        if len(pids) == 2 and all(pids) and (run_dir / "checkpoints" / "count.txt").is_file():
            return [int(pid) for pid in pids]
        time.sleep(0.1)
    raise AssertionError(f"the workers did not start: {list(run_dir.glob('*'))}")


@pytest.mark.slow
def test_two_ranks_run_and_facts_are_returned(tmp_path: Path) -> None:
    process = start(tmp_path, total=4)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    metadata = json.loads(output.splitlines()[-1])
    assert metadata["counted"] == 4
    assert 0.1 < metadata["peak_memory_gb"] < 8
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_an_error_has_the_rank_and_its_traceback(tmp_path: Path) -> None:
    process = start(tmp_path, total=4, broken_rank=1)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "ValueError: rank 1 cannot count past two" in output
    assert str(tmp_path / "log.txt") in output


def living(pids: list[int]) -> list[int]:
    """Those that still run; a zombie that is not reaped yet does not count."""
    alive = [pid for pid in pids if psutil.pid_exists(pid)]
    return [pid for pid in alive if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_canceling_saves_ends_all_processes_and_the_next_run_resumes(tmp_path: Path) -> None:
    process = start(tmp_path, total=400, step_seconds=0.05)
    pids = worker_pids(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert not living(pids)
    reached = int((tmp_path / "checkpoints" / "count.txt").read_text())
    assert 0 < reached < 400
    again = start(tmp_path, total=reached + 2)
    output, _ = again.communicate(timeout=PATIENCE)
    assert json.loads(output.splitlines()[-1])["started_from"] == reached


@pytest.mark.slow
def test_a_program_that_ignores_sigterm_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    process = start(tmp_path, grace=1.0, total=4000, step_seconds=0.05, deaf=True)
    pids = worker_pids(tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert not living(pids)


def processes_of(run_dir: Path) -> list[psutil.Process]:
    """Whatever names the run folder in its command line: Dagster, torchrun, the ranks."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if str(run_dir) in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.slow
def test_no_process_survives_a_killed_dagster(tmp_path: Path) -> None:
    chance = random.Random()
    for number in range(3):
        run_dir = tmp_path / str(number)
        process = start(run_dir, grace=1.0, total=4000, step_seconds=0.05, deaf=True)
        deadline = time.monotonic() + PATIENCE
        while not (run_dir / "log.txt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        delay, how = chance.uniform(0, 8), chance.choice([signal.SIGTERM, signal.SIGKILL])
        time.sleep(delay)
        process.send_signal(how)
        process.communicate(timeout=PATIENCE)
        deadline = time.monotonic() + 120
        while left := processes_of(run_dir):
            assert time.monotonic() < deadline, f"after {how.name} at {delay:.2f} s: {left}"
            time.sleep(0.2)


def test_an_invalid_configuration_is_not_retried(tmp_path: Path) -> None:
    config = RoleConfig(run_dir=tmp_path, role="ask")  # of another program
    program = Program("tests.support.programs", config, Shape(processes=1))
    run = launch(program, TorchrunLauncher(retries=5, retry_seconds=600))
    assert "unknown key 'answer' in CountConfig" in failure(run)


def test_a_failure_is_retried_from_the_last_checkpoint(tmp_path: Path) -> None:
    program = count(tmp_path, Shape(processes=1, gpus=1), total=6, fail_once_at=3)
    launcher = TorchrunLauncher(
        retries=1, retry_seconds=0.1, devices=["a"], lease_folder=str(tmp_path / "leases")
    )
    found = metadata(launch(program, launcher))
    assert found["attempts"] == 2 and found["started_from"] == 3
    assert found["gpu_hours"] == pytest.approx(found["compute_seconds"] / 3600)


def test_more_gpus_than_available_is_an_error(tmp_path: Path) -> None:
    program = count(tmp_path, Shape(processes=1, gpus=4), total=1)
    run = launch(program, TorchrunLauncher(devices=["0", "1"]))
    assert "asks for 4 GPUs, and this machine has 2" in failure(run)


@pytest.mark.parametrize(
    ("devices", "remedy"),
    [
        ("a", 'gpus = 0, .* generate itself, engine = { kind = "transformers" }'),
        ("abc", "gpus .* to at most 2"),
    ],
)
def test_too_few_gpus_for_program_and_service_is_an_error(
    tmp_path: Path, devices: str, remedy: str
) -> None:
    service = Program("tests.support.roles", role(tmp_path, "serve"), Shape(processes=1, gpus=1))
    shape = Shape(processes=1, gpus=len(devices))
    program = Program("tests.support.roles", role(tmp_path, "ask"), shape, service=service)
    run = launch(program, TorchrunLauncher(devices=list(devices)))
    assert re.search(f"this machine has {len(devices)}: .*{remedy}", failure(run))


def test_a_service_shares_the_first_gpu(tmp_path: Path) -> None:
    alone = Shape(processes=1, gpus=0)
    service = Program("tests.support.roles", role(tmp_path, "serve"), alone, shares_gpu=True)
    asks = role(tmp_path, "ask")
    program = Program("tests.support.roles", asks, Shape(processes=1, gpus=1), service=service)
    launcher = TorchrunLauncher(devices=["a", "b"], lease_folder=str(tmp_path / "leases"))
    found = metadata(launch(program, launcher))
    assert found["gpu_hours"] == pytest.approx(found["compute_seconds"] / 3600)  # of one GPU
    log = (program.run_dir / "log.txt").read_text()
    assert "asks on a\n" in log and "serves on a\n" in log


def role(folder: Path, name: Literal["ask", "serve"]) -> RoleConfig:
    return RoleConfig(run_dir=folder / name, role=name, answer="yes")


@pytest.mark.slow
def test_the_time_limit_saves(tmp_path: Path) -> None:
    program = count(tmp_path, Shape(processes=1, hours=20 / 3600), total=10_000, step_seconds=0.05)
    assert "reached its time limit" in failure(launch(program, TorchrunLauncher()))
    assert 0 < int((tmp_path / "checkpoints" / "count.txt").read_text()) < 10_000


def test_gpu_hours_of_the_week_are_recorded_and_limited(tmp_path: Path) -> None:
    shape = Shape(processes=1, gpus=1)
    ledger = tmp_path / "ledger"
    accounts = {"ledger": str(ledger), "devices": ["0"], "lease_folder": str(tmp_path / "leases")}
    first = launch(count(tmp_path / "a", shape, total=2), TorchrunLauncher(**accounts))
    spent = metadata(first)["gpu_hours"]
    assert spent > 0
    assert sum(Ledger(ledger).used(datetime.now(UTC)).values()) == pytest.approx(spent, abs=1e-4)
    limited = TorchrunLauncher(**accounts, gpu_hours_a_week=spent / 2)
    refused = failure(launch(count(tmp_path / "b", shape, total=2), limited))
    assert "is not launched: the budget of" in refused
    assert not (tmp_path / "b" / "log.txt").exists()
    free = Shape(processes=1, gpus=0)
    assert metadata(launch(count(tmp_path / "c", free, total=2), limited))["counted"] == 2


@pytest.mark.slow
def test_a_killed_launcher_has_recorded_its_gpu_hours(tmp_path: Path) -> None:
    values = {
        "config": {"run_dir": str(tmp_path / "run"), "total": 400, "step_seconds": 0.05},
        "shape": {"processes": 1, "gpus": 1},
        "launcher": {
            "ledger": str(tmp_path / "ledger"),
            "devices": ["0"],
            "lease_folder": str(tmp_path / "leases"),
        },
    }
    command = [sys.executable, "-m", "tests.support.launched", json.dumps(values)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    (attempt,) = Ledger(tmp_path / "ledger").attempts()
    assert attempt.gpus == 1 and attempt.asset == "counted"
