"""A real Slurm for the tests of its launcher, started once per session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm_cluster import SlurmCluster, Unavailable


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Two nodes with 16 CPUs and 8 GPUs each, by their own account."""
    # Not tmp_path: munge requires folders above its socket that all users may enter.
    cluster = SlurmCluster(Path(tempfile.mkdtemp(prefix="slurm-")))
    try:
        cluster.start()
    except Unavailable as reason:
        cluster.stop()
        pytest.skip(f"no Slurm here: {reason}")
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster with an empty queue, before and after, and found by all clients."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    yield slurm
    slurm.recover()
