"""Code that waits logs reminders, because a run without events looks stuck."""

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dagster import AssetExecutionContext, DagsterInstance, Output, asset, materialize

from resources import leases
from resources import slurm as slurm_follower
from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.slurm import Ended, Follower, Job, SlurmClient
from tests.support.launched import count
from tts_assets.core import processes as waiting
from tts_assets.core.artifacts import ArtifactStore, Build, EvaluationSuite
from tts_assets.core.compute import Shape
from tts_assets.orchestration.config import Alerts

BUILD = Build("evaluation_suite", {}, {}, "1")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes become tenths of a second."""
    monkeypatch.setattr(waiting, "AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(leases, "WAIT_SECONDS", 0.02)
    monkeypatch.setattr(slurm_follower, "FIRST_POLL", 0.02)


class LogLines:
    """Collects log lines; ``often`` is set by the third line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.often = threading.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if len(self.lines) == 3:
            self.often.set()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """What another process would hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize(
    ("busy", "line"),
    [("gpu-0", "waiting for 1 GPUs: 0 of 1 are free"), ("line", "waiting in line for 1 GPUs")],
)
def test_waiting_for_gpus_is_logged(tmp_path: Path, busy: str, line: str) -> None:
    log = LogLines()

    def take() -> tuple[str, ...]:
        with leases.lease(1, ["0"], log, tmp_path) as lease:
            return lease.devices

    with ThreadPoolExecutor(1) as pool:
        with held(tmp_path / busy):
            taken = pool.submit(take)
            assert log.often.wait(30)
        assert taken.result() == ("0",)
    assert set(log.lines) == {line}


def test_waiting_for_another_run_of_the_build_is_logged(tmp_path: Path) -> None:
    lock = Path(f"{ArtifactStore(tmp_path).work_folder(BUILD)}.lock")
    (tmp_path / "dagster").mkdir()
    resources = {
        "store": ArtifactStoreResource(root=str(tmp_path)),
        "io_manager": ArtifactIOManager(root=str(tmp_path)),
    }
    with (
        DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance,
        ThreadPoolExecutor(1) as pool,
    ):

        def said() -> list[str]:
            messages = [
                entry.user_message
                for run in instance.get_runs()
                for entry in instance.all_logs(run.run_id)
            ]
            return [each for each in messages if each.startswith("waiting: another run builds")]

        with held(lock):
            run = pool.submit(
                materialize, [evaluation_suite], instance=instance, resources=resources
            )
            deadline = time.monotonic() + 120
            while len(lines := said()) < 3 and time.monotonic() < deadline:
                time.sleep(0.2)
            assert len(lines) >= 3 and BUILD.fingerprint in lines[0]
        assert run.result().success


@asset
def evaluation_suite(
    context: AssetExecutionContext, store: ArtifactStoreResource
) -> Output[EvaluationSuite]:
    def write(work: Path) -> dict[str, object]:
        (work / "result" / "suite.jsonl").write_text("one\n")
        return {"texts": 1, "categories": {"digits": 1}}

    return store.materialize(context, EvaluationSuite, BUILD, write)


@dataclass(frozen=True)
class Queue(SlurmClient):
    """Shows a job in a given state until ``enough``, and then as completed."""

    login: tuple[str, ...] = ()
    command_seconds: float = 1.0
    warn: Callable[[str], None] = print
    state: str = "PENDING"
    enough: threading.Event = field(default_factory=threading.Event)

    def show(self, job: int) -> Job:
        return Job(job, "COMPLETED" if self.enough.is_set() else self.state, reason="Priority")


def finished(folder: Path, queue: Queue, log: LogLines, seconds: float) -> Follower:
    """Of a job that ends after so long, if not before."""
    timer = threading.Timer(seconds, queue.enough.set)
    timer.daemon = True
    timer.start()
    (folder / "result.json").write_text("{}")
    program = count(folder, Shape(processes=1), total=1)
    return Follower(queue, program, 0.02, log, lambda *_: None)


@pytest.mark.parametrize("state", ["PENDING", "SUSPENDED"])
def test_waiting_for_a_job_is_logged(tmp_path: Path, state: str) -> None:
    log = LogLines()
    queue = Queue(state=state, enough=log.often)
    assert finished(tmp_path, queue, log, 30).follow(7) == Ended(7, "COMPLETED", "0:0")
    assert len(log.lines) > 3 and len(set(log.lines[:3])) == 1
    assert state in log.lines[0]


def test_a_running_job_logs_no_reminders(tmp_path: Path) -> None:
    log, queue = LogLines(), Queue(state="RUNNING")
    finished(tmp_path, queue, log, 1).follow(7)
    assert [line.split()[3] for line in log.lines] == ["RUNNING", "COMPLETED"]


def test_a_waiting_run_is_not_ended_as_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shortest = Alerts(stuck_minutes=5, end_stuck_minutes=10).end_stuck_minutes
    assert shortest is not None and shortest * 60 >= 2 * waiting.AGAIN_SECONDS
    with pytest.raises(ValueError, match="greater than or equal to 10"):
        Alerts(stuck_minutes=5, end_stuck_minutes=9)
