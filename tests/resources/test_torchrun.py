"""The torchrun launcher on real torchrun: results, failures, cancellation, resume."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def start(run_dir: Path, grace: float = 20.0, **config: object) -> subprocess.Popen[str]:
    values = {
        "config": {"run_dir": str(run_dir), **config},
        "shape": {"processes": 2},
        "launcher": {"grace_seconds": grace},
    }
    command = [sys.executable, "-m", "tests.launched", json.dumps(values)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def worker_pids(run_dir: Path, deadline_seconds: float = 300.0) -> list[int]:
    """The pids of both ranks, once both have started."""
    deadline = time.monotonic() + deadline_seconds
    while time.monotonic() < deadline:
        pids = [path.read_text() for path in run_dir.glob("pid.*")]
        if len(pids) == 2 and all(pids) and (run_dir / "checkpoints" / "count.txt").is_file():
            return [int(pid) for pid in pids]
        time.sleep(0.1)
    raise AssertionError(f"the workers did not start: {list(run_dir.glob('*'))}")


def test_runs_two_ranks_and_gives_their_facts(tmp_path: Path) -> None:
    process = start(tmp_path, total=4)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    metadata = json.loads(output.splitlines()[-1])
    assert metadata["counted"] == 4
    assert 0.1 < metadata["peak_memory_gb"] < 8
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_failure_names_the_rank_and_shows_its_traceback(tmp_path: Path) -> None:
    process = start(tmp_path, total=4, broken_rank=1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "ValueError: rank 1 cannot count past two" in output
    assert str(tmp_path / "log.txt") in output


def living(pids: list[int]) -> list[int]:
    """Those that still run; a zombie that nobody has reaped yet does not."""
    alive = [pid for pid in pids if psutil.pid_exists(pid)]
    return [pid for pid in alive if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def test_cancelling_saves_ends_every_process_and_resumes(tmp_path: Path) -> None:
    process = start(tmp_path, total=400, step_seconds=0.05)
    pids = worker_pids(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert not living(pids)
    reached = int((tmp_path / "checkpoints" / "count.txt").read_text())
    assert 0 < reached < 400
    again = start(tmp_path, total=reached + 2)
    output, _ = again.communicate(timeout=300)
    assert json.loads(output.splitlines()[-1])["started_from"] == reached


def test_a_program_that_ignores_the_stop_is_killed_after_the_grace(tmp_path: Path) -> None:
    process = start(tmp_path, grace=1.0, total=4000, step_seconds=0.05, deaf=True)
    pids = worker_pids(tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert not living(pids)
