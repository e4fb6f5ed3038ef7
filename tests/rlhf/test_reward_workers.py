"""Rewards in processes of their own: the same scores, whatever happens to a worker."""

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
from tts_assets.rlhf.reward_executor import RewardExecutor, ThreadRunner
from tts_assets.rlhf.reward_workers import PROGRAM, WorkerRunner, devices_of
from tts_assets.rlhf.rewards import DecodedCompletion, RewardError

REWARDS = (WerReward(batch_size=2), RateReward())
# Dies at the completions whose text begins with a word, as often as ``times`` says.
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
    """A reward that kills the worker that judges certain completions."""
    name = f"fatal_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FATAL)
    (tmp_path / "deaths").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def make(word: str, times: int) -> FunctionReward:
        options = {"word": word, "times": times, "folder": str(tmp_path / "deaths")}
        return FunctionReward(call=f"{name}:fatal", options=options)

    return make


@pytest.fixture
def judges() -> Iterator[WorkerRunner]:
    made = WorkerRunner(REWARDS, ["cpu", "cpu"])
    yield made
    made.close()


def workers() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if PROGRAM in one.cmdline()]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def gone(process: psutil.Process) -> bool:
    """Not even a zombie that nobody has fetched counts as living."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_workers_score_as_threads_do(
    judges: WorkerRunner, sentences: list[DecodedCompletion]
) -> None:
    expected = RewardExecutor(REWARDS, ThreadRunner(REWARDS, threads=1)).judge(sentences)
    assert RewardExecutor(REWARDS, judges).judge(sentences) == expected
    assert judges.restarted == 0


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    judges: WorkerRunner, sentences: list[DecodedCompletion]
) -> None:
    panel = RewardExecutor(REWARDS, judges)
    expected = panel.judge(sentences)
    victim = judges.workers[0].process

    def kill_at_work() -> None:
        if wait_until(lambda: judges.workers[0].part is not None):
            os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    assert panel.judge(sentences * 2) == expected * 2
    killer.join()
    assert judges.restarted == 1
    assert victim.returncode == -signal.SIGKILL


def test_workers_do_not_heed_the_stop_of_a_run(
    judges: WorkerRunner, sentences: list[DecodedCompletion]
) -> None:
    panel = RewardExecutor(REWARDS, judges)
    expected = panel.judge(sentences[:3])
    for worker in workers():
        worker.send_signal(signal.SIGTERM)
    assert panel.judge(sentences[:3]) == expected
    assert judges.restarted == 0


def test_completions_that_kill_twice_are_judged_one_by_one(
    sentences: list[DecodedCompletion], fatal: Callable[..., FunctionReward]
) -> None:
    word = sentences[1].text.lower().split()[0]
    reward = fatal(word, times=3)
    judges = WorkerRunner([reward], ["cpu"])
    verdicts = RewardExecutor([reward], judges).judge(sentences)
    assert judges.restarted == 3
    assert {verdict.total for verdict in verdicts} == {0.5}
    judges.close()


def test_a_completion_that_always_kills_ends_the_run_and_is_named(
    sentences: list[DecodedCompletion], fatal: Callable[..., FunctionReward]
) -> None:
    culprit = sentences[2].text
    reward = fatal(culprit.lower(), times=99)
    panel = RewardExecutor([reward], WorkerRunner([reward], ["cpu", "cpu"]))
    with pytest.raises(RewardError, match=r"fatal: workers ended 2 times \(status -9\)") as error:
        panel.judge(sentences)
    assert repr(culprit) in str(error.value)
    assert not workers()


def test_an_error_in_a_worker_is_the_trainers(sentences: list[DecodedCompletion]) -> None:
    spanish = [DecodedCompletion("hola", sentences[0].wave, 16_000, True, language="es")]
    panel = RewardExecutor(REWARDS, WorkerRunner(REWARDS, ["cpu"]))
    with pytest.raises(RewardError, match=r"knows English only"):
        panel.judge(spanish)
    assert not workers()


def test_a_function_that_hangs_is_given_up_and_named(
    sentences: list[DecodedCompletion], fatal: Callable[..., FunctionReward]
) -> None:
    endless = FunctionReward(call=fatal("x", 0).call.replace(":fatal", ":endless"))
    judges = WorkerRunner([endless], ["cpu"], seconds=1.0)
    with pytest.raises(RewardError, match="endless: workers ended 2 times"):
        RewardExecutor([endless], judges).judge(sentences[:1])
    assert not workers()


def test_no_worker_outlives_a_killed_trainer(
    tmp_path: Path, fatal: Callable[..., FunctionReward]
) -> None:
    """Not even one that is in an endless loop."""
    call = fatal("x", 0).call.replace(":fatal", ":endless")
    program = f"""
import numpy as np
from tts_assets.rlhf.reward_executor import Panel
from tts_assets.rlhf.reward_config import FunctionReward
from tts_assets.rlhf.reward_workers import WorkerJudges
from tts_assets.rlhf.rewards import Spoken
rewards = [FunctionReward(call={call!r})]
Panel(rewards, WorkerJudges(rewards, ["cpu"])).judge(
    [Spoken("x", np.ones(16000, np.float32), 16000, True)])
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
    assert wait_until(lambda: gone(worker), seconds=120)


def test_devices_go_round_over_all_ranks() -> None:
    assert devices_of(0, 2, ["cuda:2", "cuda:3", "cuda:4"]) == ["cuda:2", "cuda:3"]
    assert devices_of(1, 2, ["cuda:2", "cuda:3", "cuda:4"]) == ["cuda:4", "cuda:2"]
    assert devices_of(0, 2, []) == ["cpu", "cpu"]
