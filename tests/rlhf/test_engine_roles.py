"""Trainer and engine as two roles of one launch: on two nodes of a real Slurm, and locally."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resources.slurm import SlurmLauncher
from resources.torchrun import TorchrunLauncher
from tests.resources.conftest import cluster, slurm  # noqa: F401 (fixtures)
from tests.rlhf.conftest import engine_servers
from tests.rlhf.test_train import metrics
from tests.support.launched import failure, launch, metadata
from tests.support.programs import ONE_THREAD
from tests.support.slurm_cluster import SlurmCluster
from tts_assets.core.compute import Shape
from tts_assets.rlhf.config import RlhfProgram
from tts_assets.rlhf.inputs import with_engine
from tts_assets.serving.config import VllmConfig

pytestmark = pytest.mark.slow
Make = Callable[..., RlhfProgram]
SHAPE = Shape(processes=1, gpus=0, environment=ONE_THREAD)


def test_two_steps_with_the_engine_on_the_second_node(
    cluster: SlurmCluster,  # noqa: F811
    program: Make,
) -> None:
    made = program("run", engine={"kind": "vllm"}, steps=2)
    found = metadata(
        launch(with_engine("tts_assets.rlhf.train", made, SHAPE), SlurmLauncher(poll_seconds=1))
    )
    assert found["steps"] == 2
    assert "on node[0-1]" in (made.run_dir / "log.txt").read_text()
    assert all(record["engine_logprob_gap"] < 1e-2 for record in metrics(made))
    cluster.wait_until(lambda: not engine_servers(made), "the engine's end")


def test_a_checkpoint_is_saved_if_the_engine_dies(program: Make) -> None:
    """The launcher ends the trainer, which saves. The error names the engine. A retry resumes."""
    from tts_assets.rlhf.trainer import newest_checkpoint

    vllm = VllmConfig(restarts=0)
    made = program("run", vllm=vllm, engine={"kind": "vllm"}, steps=4, save_every=100)
    killer = threading.Thread(target=kill_after_first_step, args=(made,))
    killer.start()
    lost = launch(
        with_engine("tts_assets.rlhf.train", made, SHAPE), TorchrunLauncher(grace_seconds=20)
    )
    killer.join()
    # The launcher detects it first, or the trainer if it waits for a rollout at that time.
    assert re.search("(ended with status -9,|died of this rollout) 1 times in a row", failure(lost))
    assert "log.txt" in failure(lost)
    assert not engine_servers(made)
    assert newest_checkpoint(made.run_dir / "checkpoints") is not None
    done = len(metrics(made))
    assert 1 <= done < 4
    assert (
        metadata(launch(with_engine("tts_assets.rlhf.train", made, SHAPE), TorchrunLauncher()))[
            "steps"
        ]
        == 4
    )
    assert [record["step"] for record in metrics(made)] == [1, 2, 3, 4]
    assert not engine_servers(made)


def kill_after_first_step(program: RlhfProgram) -> None:
    path: Path = program.run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in engine_servers(program):
        process.kill()
