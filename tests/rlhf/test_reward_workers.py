"""Rewards in worker processes: the same scores, even if workers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tts_assets.rlhf.reward_config import FunctionReward, RateReward, WerReward
from tts_assets.rlhf.reward_executor import (
    PROGRAM,
    RewardExecutor,
    ThreadRunner,
    WorkerRunner,
    devices_of,
)
from tts_assets.rlhf.rewards import DecodedCompletion, RewardError

REWARDS = (WerReward(batch_size=2), RateReward())
# Kills its process ``times`` times at completions whose text begins with ``word``.
FATAL = """
import os, pathlib, signal

def fatal(batch, word, times, folder):
    deaths = pathlib.Path(folder)
    if any(one.text.lower().startswith(word) for one in batch):
        if len(list(deaths.iterdir())) < times:
            (deaths / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return [0.5] * len(batch)

def endless(batch):
    while True:
        pass
"""


@pytest.fixture
def fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FunctionReward]:
    """Returns a factory of rewards that kill the worker at certain completions."""
    name = f"fatal_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FATAL)
    (tmp_path / "deaths").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def make(word: str, times: int) -> FunctionReward:
        options = {"word": word, "times": times, "folder": str(tmp_path / "deaths")}
        return FunctionReward(call=f"{name}:fatal", options=options)

    return make


@pytest.fixture
def runner() -> Iterator[WorkerRunner]:
    made = WorkerRunner(REWARDS, ["cpu", "cpu"])
    yield made
    made.close()


def workers() -> list[psutil.Process]:
    """The running workers. Children of earlier tests may be zombies, which have no command."""
    children = psutil.Process().children()
    return [one for one in children if not gone(one) and PROGRAM in command(one)]


def command(process: psutil.Process) -> list[str]:
    """The command line; empty if the process has just ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> bool:
    """Whether the condition becomes true; a process may start for a minute on a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; zombies have."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
def test_workers_and_threads_return_the_same_scores(
    runner: WorkerRunner, sentences: list[DecodedCompletion]
) -> None:
    expected = RewardExecutor(REWARDS, ThreadRunner(REWARDS, threads=1)).score(sentences)
    assert RewardExecutor(REWARDS, runner).score(sentences) == expected
    assert runner.restarted == 0


@pytest.mark.slow
def test_a_killed_worker_is_replaced(
    runner: WorkerRunner, sentences: list[DecodedCompletion]
) -> None:
    executor = RewardExecutor(REWARDS, runner)
    expected = executor.score(sentences)
    victim = runner.workers[0].process

    def kill_at_work() -> None:
        if wait_until(lambda: runner.workers[0].chunk is not None):
            os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    assert executor.score(sentences * 2) == expected * 2
    killer.join()
    assert runner.restarted == 1
    assert victim.returncode == -signal.SIGKILL


@pytest.fixture
def zombie() -> Iterator[None]:
    """A child that has ended and is not waited for, as tests of other programs leave them."""
    child = subprocess.Popen(["true"])
    assert wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    yield
    child.wait()


@pytest.mark.usefixtures("zombie")
def test_children_of_other_tests_are_no_workers() -> None:
    assert workers() == []


@pytest.mark.slow
def test_workers_ignore_sigterm(runner: WorkerRunner, sentences: list[DecodedCompletion]) -> None:
    executor = RewardExecutor(REWARDS, runner)
    expected = executor.score(sentences[:3])
    for worker in workers():
        worker.send_signal(signal.SIGTERM)
    assert executor.score(sentences[:3]) == expected
    assert runner.restarted == 0


@pytest.mark.slow
def test_completions_are_split_after_two_deaths(
    sentences: list[DecodedCompletion], fatal: Callable[..., FunctionReward]
) -> None:
    word = sentences[1].text.lower().split()[0]
    reward = fatal(word, times=3)
    runner = WorkerRunner([reward], ["cpu"])
    results = RewardExecutor([reward], runner).score(sentences)
    assert runner.restarted == 3
    assert {result.total for result in results} == {0.5}
    runner.close()


@pytest.mark.slow
def test_the_error_names_a_completion_that_always_kills(
    sentences: list[DecodedCompletion], fatal: Callable[..., FunctionReward]
) -> None:
    culprit = sentences[2].text
    reward = fatal(culprit.lower(), times=99)
    executor = RewardExecutor([reward], WorkerRunner([reward], ["cpu", "cpu"]))
    with pytest.raises(RewardError, match=r"fatal: workers ended 2 times \(status -9\)") as error:
        executor.score(sentences)
    assert repr(culprit) in str(error.value)
    assert not workers()


@pytest.mark.slow
def test_an_error_in_a_worker_is_raised_in_the_trainer(sentences: list[DecodedCompletion]) -> None:
    spanish = [DecodedCompletion("hola", sentences[0].wave, 16_000, True, language="es")]
    executor = RewardExecutor(REWARDS, WorkerRunner(REWARDS, ["cpu"]))
    with pytest.raises(RewardError, match=r"knows English only"):
        executor.score(spanish)
    assert not workers()


@pytest.mark.slow
def test_a_function_that_hangs_is_stopped_and_named(
    sentences: list[DecodedCompletion], fatal: Callable[..., FunctionReward]
) -> None:
    endless = FunctionReward(call=fatal("x", 0).call.replace(":fatal", ":endless"))
    runner = WorkerRunner([endless], ["cpu"], seconds=1.0)
    with pytest.raises(RewardError, match="endless: workers ended 2 times"):
        RewardExecutor([endless], runner).score(sentences[:1])
    assert not workers()


@pytest.mark.slow
def test_workers_end_if_the_trainer_is_killed(
    tmp_path: Path, fatal: Callable[..., FunctionReward]
) -> None:
    """Even a worker in an endless loop ends."""
    call = fatal("x", 0).call.replace(":fatal", ":endless")
    program = f"""
import numpy as np
from tts_assets.rlhf.reward_executor import RewardExecutor
from tts_assets.rlhf.reward_config import FunctionReward
from tts_assets.rlhf.reward_executor import WorkerRunner
from tts_assets.rlhf.rewards import DecodedCompletion
rewards = [FunctionReward(call={call!r})]
RewardExecutor(rewards, WorkerRunner(rewards, ["cpu"])).score(
    [DecodedCompletion("x", np.ones(16000, np.float32), 16000, True)])
"""
    trainer = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [tmp_path, *sys.path]))},
    )
    tree = psutil.Process(trainer.pid)
    assert wait_until(lambda: any(one.cpu_times().user > 0.1 for one in tree.children()))
    (worker,) = tree.children()
    trainer.kill()
    trainer.wait()
    assert wait_until(lambda: gone(worker))


def test_devices_are_assigned_in_turn_over_all_ranks() -> None:
    assert devices_of(0, 2, ["cuda:2", "cuda:3", "cuda:4"]) == ["cuda:2", "cuda:3"]
    assert devices_of(1, 2, ["cuda:2", "cuda:3", "cuda:4"]) == ["cuda:4", "cuda:2"]
    assert devices_of(0, 2, []) == ["cpu", "cpu"]
