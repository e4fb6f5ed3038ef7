"""Training on two nodes, and two programs that communicate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resources.launcher import Program
from resources.slurm import SlurmClient, SlurmLauncher
from resources.slurm_job import job_name, write_script
from resources.torchrun import TorchrunLauncher
from tests.sft.conftest import arrays  # noqa: F401 (a fixture)
from tests.sft.conftest import program as sft_program
from tests.support.launched import launch, metadata
from tests.support.programs import ONE_THREAD
from tests.support.roles import RoleConfig
from tests.support.slurm_cluster import SlurmCluster
from tts_assets.core.compute import Shape, SlurmOptions
from tts_assets.core.program import read_metrics

pytestmark = pytest.mark.slow


def losses(run_dir: Path) -> list[float]:
    return [r["loss"] for r in read_metrics(run_dir / "metrics.jsonl") if "loss" in r]


def test_two_nodes_with_two_processes_train_like_one_process(
    cluster: SlurmCluster,
    arrays: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shape = Shape(nodes=2, processes=2, gpus=2, environment=ONE_THREAD)
    config = sft_program(tmp_path / "four", arrays, steps=3)
    four = launch(Program("tts_assets.sft.train", config, shape), SlurmLauncher(poll_seconds=1))
    assert metadata(four)["steps"] == 3
    log = (tmp_path / "four" / "log.txt").read_text()
    assert "on node[0-1]" in log
    assert len(list((tmp_path / "four" / "memory").glob("rank*.json"))) == 4
    config = sft_program(tmp_path / "one", arrays, steps=3)
    here = Program("tts_assets.sft.train", config, Shape(processes=1, environment=ONE_THREAD))
    assert metadata(launch(here, TorchrunLauncher()))["steps"] == 3
    assert len(losses(tmp_path / "one")) == 3
    assert np.allclose(losses(tmp_path / "four"), losses(tmp_path / "one"), atol=1e-4)


def two_roles(run_dir: Path, gpus: int = 1) -> Program:
    shape = Shape(processes=1, gpus=1, environment=ONE_THREAD)
    serves = RoleConfig(run_dir=run_dir / "service", role="serve", answer="forty-two")
    asks = RoleConfig(run_dir=run_dir, role="ask")
    service = Program("tests.support.roles", serves, shape)
    asking = Shape(processes=1, gpus=gpus, environment=ONE_THREAD)
    return Program("tests.support.roles", asks, asking, service=service)


def test_two_roles_on_two_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    found = metadata(launch(two_roles(tmp_path), SlurmLauncher(poll_seconds=1)))
    assert found["answers"] == "forty-two forty-two forty-two"
    log = (tmp_path / "log.txt").read_text()
    assert {"asks on node0", "serves on node1"} <= set(log.splitlines())


def test_two_roles_with_unequal_nodes_are_a_heterogeneous_job(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """The program has four GPUs, its service one; a second launch follows the same job."""
    program = two_roles(tmp_path, gpus=4)
    launcher = SlurmLauncher(poll_seconds=1, ledger=str(tmp_path / "ledger"))
    found = metadata(launch(program, launcher))
    assert found["answers"] == "forty-two forty-two forty-two"
    script = (tmp_path / "job.sh").read_text()
    first, second = script.split("#SBATCH hetjob\n")
    assert "--gpus-per-node=4" in first and "--gpus-per-node=1" in second
    seconds = found["compute_seconds"]
    assert found["gpu_hours"] == pytest.approx(seconds * 5 / 3600)
    assert any(line.startswith("serves on node") for line in (tmp_path / "log.txt").open())


def test_a_heterogeneous_job_is_found_and_cancelled_whole(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    program = two_roles(tmp_path, gpus=4)
    client = SlurmClient((), 30.0, print)
    job = client.submit(write_script(program, SlurmOptions(), {}))
    assert client.find(job_name(program)) == [job]
    found = client.show(job)
    assert found is not None and found.id == job
    client.cancel(job_name(program))
    cluster.wait_until(lambda: not client.find(job_name(program)), "the end of the job")
    cluster.wait_until(
        lambda: not cluster.ask("squeue", "--noheader", "--states=PENDING,RUNNING").strip(),
        "the end of both components",
    )


def test_two_roles_on_this_machine(tmp_path: Path) -> None:
    launcher = TorchrunLauncher(devices=["a", "b"], lease_folder=str(tmp_path / "leases"))
    found = metadata(launch(two_roles(tmp_path / "run"), launcher))
    assert found["answers"] == "forty-two forty-two forty-two"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "asks on a" in log and "serves on b" in log
