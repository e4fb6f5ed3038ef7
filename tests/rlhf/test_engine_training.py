"""GRPO with rollouts from the real vLLM: resumed, crashed, lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.rlhf.conftest import engine_servers
from tests.rlhf.test_train import metrics, run, stop_after_first_step, weights
from tts_assets.core.artifacts import CheckpointFacts
from tts_assets.core.processes import Server
from tts_assets.core.program import STOPPED
from tts_assets.rlhf.config import EngineProgram, RlhfProgram
from tts_assets.rlhf.engine_client import EngineError
from tts_assets.serving.config import VllmConfig

pytestmark = pytest.mark.slow
Make = Callable[..., RlhfProgram]
STEPS = 5


@pytest.fixture
def shared(
    program: Make, engine: EngineProgram, server: Server, monkeypatch: pytest.MonkeyPatch
) -> Make:
    """Returns a factory of runs that use the module's engine as a launcher's service."""
    address = urlsplit(server.url)
    monkeypatch.setenv("TTS_SERVICE_HOST", str(address.hostname))
    monkeypatch.setenv("TTS_SERVICE_PORT", str(address.port))

    def make(name: str, **changes: Any) -> RlhfProgram:
        made = program(name, engine={"kind": "vllm"}, steps=STEPS, **changes)
        (made.run_dir / "engine").symlink_to(engine.run_dir)
        return made

    return make


@pytest.fixture
def whole(shared: Make) -> RlhfProgram:
    """A run without interruption."""
    made = shared("whole")
    run(made)
    return made


def after_first_step(program: RlhfProgram, act: Callable[[], None]) -> None:
    def watch() -> None:
        deadline = time.monotonic() + 120
        while not (program.run_dir / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    threading.Thread(target=watch, daemon=True).start()


def kill_engine(program: RlhfProgram) -> None:
    for process in engine_servers(program):
        process.kill()


def test_each_rollout_uses_the_current_weights(whole: RlhfProgram) -> None:
    records = metrics(whole)
    assert len(records) == STEPS
    gaps = [record["engine_logprob_gap"] for record in records]
    assert all(0 < gap < 1e-2 for gap in gaps), gaps
    assert all(record["engine_lost"] == 0 for record in records)
    # The engine has the precision of the policy here, so nothing is corrected.
    assert not any("importance_ratio" in record for record in records)
    base = (whole.serving_model / "model.safetensors").read_bytes()
    assert weights(whole) != base


def test_a_resumed_run_ends_with_the_same_weights(shared: Make, whole: RlhfProgram) -> None:
    parts = shared("parts")
    stop_after_first_step(parts)
    with pytest.raises(SystemExit) as stopped:
        run(parts)
    assert stopped.value.code == STOPPED
    assert 1 <= len(metrics(parts)) < STEPS
    run(parts)
    assert weights(parts) == weights(whole)


def test_a_killed_engine_changes_nothing(shared: Make, whole: RlhfProgram, server: Server) -> None:
    made = shared("crashed")
    before = server.restarted
    after_first_step(made, lambda: kill_engine(made))
    run(made)
    assert server.restarted > before
    assert weights(made) == weights(whole)


def test_two_ranks_have_the_rollouts_of_one(shared: Make, whole: RlhfProgram) -> None:
    made = shared("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, "-m", "tts_assets.rlhf.train", str(made.run_dir / "run.json")],
        check=True,
        timeout=300,
    )
    assert metrics(made)[0]["reward"] == pytest.approx(metrics(whole)[0]["reward"], abs=1e-6)
    assert CheckpointFacts.from_json(made.run_dir / "result.json").steps == STEPS


def test_a_run_saves_a_checkpoint_if_the_engine_does_not_come_back(
    program: Make, whole: RlhfProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a launcher the run hosts its engine."""
    from tts_assets.rlhf.trainer import newest_checkpoint

    monkeypatch.delenv("TTS_SERVICE_HOST")
    vllm = VllmConfig(restarts=0)
    made = program("lost", vllm=vllm, engine={"kind": "vllm"}, steps=STEPS, save_every=100)
    after_first_step(made, lambda: kill_engine(made))
    with pytest.raises(
        EngineError, match=r"died of this rollout \d+ times? in a row; its log is|The whole log is"
    ):
        run(made)
    assert not engine_servers(made)
    newest = newest_checkpoint(made.run_dir / "checkpoints")
    assert newest is not None  # though the recipe saves every 100 steps
    (failure,) = made.run_dir.glob("failure-*.txt")
    assert "engine/log.txt" in failure.read_text()
    run(made)
    assert len(metrics(made)) == STEPS
    assert weights(made) == weights(whole)
    assert not engine_servers(made)
