"""The Slurm launcher on a real Slurm with two nodes: real jobs and failures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

from resources.slurm import SlurmLauncher
from resources.slurm_job import job_name, write_script
from tests.support.launched import count, failure, launch, metadata
from tests.support.programs import ONE_THREAD
from tests.support.slurm_cluster import SlurmCluster
from tts_assets.core.compute import Ledger, Shape, SlurmOptions

ROOT = Path(__file__).resolve().parents[2]
ONE = Shape(processes=1, gpus=4, environment=ONE_THREAD)
LAUNCHER: dict[str, Any] = {"poll_seconds": 1.0, "grace_seconds": 20.0}

pytestmark = pytest.mark.slow


def start(
    run_dir: Path, launcher: dict[str, Any] | None = None, shape: Shape = ONE, **config: Any
) -> Future[ExecuteInProcessResult]:
    """A Dagster run in a thread, so that the test can do something to its job meanwhile."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(
        launch, count(run_dir, shape, **config), SlurmLauncher(**{**LAUNCHER, **(launcher or {})})
    )
    pool.shutdown(wait=False)
    return future


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


def counted(run_dir: Path) -> int:
    saved = run_dir / "checkpoints" / "count.txt"
    return int(saved.read_text()) if saved.is_file() else 0


def job(cluster: SlurmCluster) -> str:
    (job,) = cluster.ask("squeue", "-h", "-o", "%i").split()
    return job


def test_success_returns_facts_cost_and_log(
    cluster: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path, total=6, wait_at=3, step_seconds=0.5)  # Slurm counts whole seconds
    seen = ""

    def live() -> bool:
        nonlocal seen
        seen += capsys.readouterr().err
        return "counted 2\n" in seen

    wait_for(live, "what the job has printed so far")
    (tmp_path / "go").touch()
    found = metadata(run.result())
    assert found["counted"] == 6
    assert found["attempts"] == 1
    assert found["gpu_hours"] == pytest.approx(found["compute_seconds"] * 4 / 3600)
    assert found["compute_seconds"] > 0
    assert 0.01 < found["peak_memory_gb"] < 8
    log = (tmp_path / "log.txt").read_text()
    assert [line for line in log.splitlines() if line.startswith("counted")] == [
        f"counted {step}" for step in range(6)
    ]
    assert (seen + capsys.readouterr().err).count("counted 5\n") == 1
    assert not (tmp_path / "environment.sh").stat().st_mode & 0o077


def test_failure_shows_the_traceback_and_a_retry_resumes(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = start(tmp_path, total=6, fail_once_at=3).result()
    said = failure(run)
    assert "OSError: the disk hiccups at 3" in said
    assert "ended as FAILED with exit code 1:0" in said
    assert str(tmp_path / "log.txt") in said
    for path in (tmp_path / "checkpoints").glob("*"):
        path.unlink()
    again = start(tmp_path, {"retries": 2, "retry_seconds": 0.1}, total=6, fail_once_at=3)
    found = metadata(again.result())
    assert found["started_from"] == 3
    assert found["attempts"] == 3  # the failed run's, and two of the one that succeeded


def test_a_job_rejected_by_slurm_is_not_retried(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = start(tmp_path, {"partition": "nowhere", "retries": 5}, total=1).result()
    assert "invalid partition" in failure(run)
    assert not [event for event in run.all_events if event.is_step_up_for_retry]


def test_a_job_cancelled_by_a_user_is_a_failure(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = start(tmp_path, {"retries": 5}, total=6, wait_at=3)
    wait_for(lambda: counted(tmp_path) == 3, "three steps")
    cluster.ask("scancel", job(cluster))
    assert "cancelled by a user (scancel)" in failure(run.result())


def dagster(tmp_path: Path, **config: Any) -> subprocess.Popen[str]:
    """A Dagster run in a process of its own, which can be killed."""
    values = {
        "slurm": True,
        "home": str(tmp_path / "home"),
        "config": {"run_dir": str(tmp_path / "run"), **config},
        "shape": ONE.model_dump(),
        "launcher": LAUNCHER,
    }
    (tmp_path / "home").mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.launched", json.dumps(values)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def compute_log(home: Path) -> str:
    """What Dagster keeps of the step's stderr."""
    return "".join(path.read_text() for path in home.glob("storage/*/compute_logs/*.err"))


def test_cancelling_the_dagster_run_cancels_the_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    process = dagster(tmp_path, total=6, wait_at=3)
    wait_for(lambda: "counted 2\n" in compute_log(tmp_path / "home"), "Dagster's compute log")
    with DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        (run,) = instance.get_runs()
        instance.report_run_canceling(run)  # as the UI does, before it sends the signal
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    cluster.wait_until(lambda: not cluster.ask("squeue", "-h"), "an empty queue")


def test_a_killed_dagster_leaves_the_job_and_the_next_run_follows_it(
    cluster: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    process = dagster(tmp_path, total=9, wait_at=3)
    wait_for(lambda: "counted 2\n" in compute_log(tmp_path / "home"), "Dagster's compute log")
    process.kill()
    process.communicate()
    number = job(cluster)
    again = start(run_dir, total=9, wait_at=3)
    shown = ""

    def follows() -> bool:
        nonlocal shown
        shown += capsys.readouterr().err
        return f"job {number} already runs this build" in shown

    wait_for(follows, "the second run to find the job")
    (run_dir / "go").touch()
    found = metadata(again.result())
    assert found["started_from"] == 0 and found["attempts"] == 1
    shown += compute_log(tmp_path / "home") + capsys.readouterr().err
    lines = [line for line in shown.splitlines() if line.startswith("counted ")]
    assert set(lines) == {f"counted {step}" for step in range(9)}
    # A kill between showing lines and remembering that shows these again, once; none is lost.
    assert all(lines.count(f"counted {step}") <= (2 if step < 4 else 1) for step in range(9))


def test_a_job_that_runs_for_the_same_build_is_followed(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    program = count(tmp_path, ONE, total=6, wait_at=3)
    program.write_config()
    script = write_script(program, SlurmOptions(), {})
    number = cluster.ask("sbatch", "--parsable", str(script))  # by hand
    run = start(tmp_path, total=6, wait_at=3)
    wait_for((tmp_path / "attempts.json").exists, "the launcher to follow it")
    (tmp_path / "go").touch()
    assert metadata(run.result())["counted"] == 6
    assert list(json.loads((tmp_path / "attempts.json").read_text())) == [f"{number}.0"]
    assert cluster.ask("squeue", "-h", "-t", "all", "-o", "%i", f"--name={job_name(program)}") == (
        number
    )


def test_starts_without_a_launcher_are_recorded(cluster: SlurmCluster, tmp_path: Path) -> None:
    run_dir, ledger = tmp_path / "run", Ledger(tmp_path / "ledger")
    program = count(run_dir, ONE, total=6, wait_at=3)
    program.write_config()
    number = cluster.ask("sbatch", "--parsable", str(write_script(program, SlurmOptions(), {})))
    wait_for(lambda: counted(run_dir) == 3, "three steps")
    cluster.ask("scontrol", "requeue", number)
    wait_for(lambda: "start 1" in (run_dir / "log.txt").read_text(), "the second start")
    (run_dir / "go").touch()
    wait_for((run_dir / "exit.json").exists, "the job's end")
    again = start(run_dir, {"ledger": str(ledger.folder)}, total=6, wait_at=3)
    assert metadata(again.result())["attempts"] == 2
    assert set(json.loads((run_dir / "attempts.json").read_text())) == {
        f"{number}.0",
        f"{number}.1",
    }
    first, second = sorted(ledger.attempts(), key=lambda attempt: attempt.started)
    assert first.gpus == second.gpus == 4  # a start may be over within the second that Slurm counts
    # As they were, not when they were counted.
    assert second.started >= first.started + first.seconds > 0


def test_the_time_limit_saves_and_requeues_up_to_a_limit(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    minute = ONE.model_copy(update={"hours": 1 / 60})
    limited = {"save_seconds": 55}  # Slurm signals up to a minute early
    goes_on, gives_up = tmp_path / "goes-on", tmp_path / "gives-up"
    first = start(goes_on, {**limited, "max_requeues": 1}, minute, total=6, wait_at=3)
    second = start(gives_up, {**limited, "max_requeues": 0}, minute, total=6, wait_at=3)
    found = metadata(first.result())
    assert found["started_from"] == 4 and found["attempts"] == 2
    assert "reached the last of 1 time limits" in failure(second.result())
    assert metadata(start(gives_up, total=6).result())["started_from"] == 4  # run again, it goes on


def test_a_job_continues_on_another_node_after_a_crash(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = start(tmp_path, total=6, wait_at=3)
    wait_for(lambda: counted(tmp_path) == 3, "three steps")
    node = int(cluster.ask("squeue", "-h", "-o", "%N").removeprefix("node"))
    cluster.crash(node)
    (tmp_path / "go").touch()
    found = metadata(run.result())
    assert found["started_from"] == 3 and found["attempts"] == 2
    assert f"on node{1 - node}" in (tmp_path / "log.txt").read_text()


def test_preemption_is_not_a_failure(cluster: SlurmCluster, tmp_path: Path) -> None:
    shape = ONE.model_copy(update={"gpus": 8, "cpus": 16})
    run = start(tmp_path, {"options": ["--nodelist=node0"]}, shape, total=6, wait_at=3)
    wait_for(lambda: counted(tmp_path) == 3, "three steps")
    urgent = ["--partition=high", "--nodelist=node0", "--cpus-per-task=16", "--output=/dev/null"]
    cluster.ask("sbatch", *urgent, "--wrap=sleep 1")
    pending = ["squeue", "-h", "--states=PENDING", "-o", "%P"]
    wait_for(lambda: "low" in cluster.ask(*pending), "the preempted job to be in the queue again")
    (tmp_path / "go").touch()
    found = metadata(run.result())
    assert found["started_from"] >= 3 and found["attempts"] == 2


def test_a_restart_of_the_controller_is_waited_for(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = start(tmp_path, {"command_seconds": 5.0}, total=6, wait_at=3)
    wait_for(lambda: counted(tmp_path) == 3, "three steps")
    cluster.kill("slurmctld", signal.SIGTERM)
    time.sleep(3)  # for the launcher to notice
    cluster.start_controller()
    (tmp_path / "go").touch()
    found = metadata(run.result())
    assert found["started_from"] == 0 and found["attempts"] == 1


def test_a_job_that_the_controller_removed(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = start(tmp_path, {"command_seconds": 5.0}, total=6, wait_at=3)
    wait_for(lambda: counted(tmp_path) == 3, "three steps")
    cluster.kill("slurmctld")
    (tmp_path / "go").touch()
    wait_for((tmp_path / "exit.json").exists, "the job's end")
    cluster.start_controller(forget=True)
    found = metadata(run.result())
    assert found["counted"] == 6 and found["attempts"] == 1
