"""With slurmdbd, the end of jobs is known after the controller removed them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.slurm import Ended, Follower, SlurmClient
from tests.support.launched import count
from tests.support.slurm_cluster import SlurmCluster, Unavailable
from tts_assets.core.compute import Shape

pytestmark = pytest.mark.slow


@pytest.fixture
def accounting(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(Path(tempfile.mkdtemp(prefix="slurm-")), accounting=True)
    try:
        cluster.start()
    except Unavailable as reason:
        cluster.stop()
        pytest.skip(f"no slurmdbd here: {reason}")
    monkeypatch.setenv("SLURM_CONF", str(cluster.configuration))
    yield cluster
    cluster.stop()


def test_the_accounting_reports_the_end_of_a_removed_job(
    accounting: SlurmCluster, tmp_path: Path
) -> None:
    options = ["--parsable", "--wait", "--output=/dev/null"]
    failed = int(accounting.ask("sbatch", *options, "--wrap=exit 7"))
    sacct = ["sacct", f"--jobs={failed}", "-X", "-n", "-P", "--format=State"]
    accounting.wait_until(lambda: accounting.ask(*sacct) == "FAILED", "the account")
    accounting.kill("slurmctld")
    accounting.start_controller(forget=True)
    # ["sh", "-c"] stands where ssh would: it gets one command line
    client = SlurmClient(("sh", "-c"), 30.0, print)
    program = count(tmp_path, Shape(processes=1), total=1)
    assert Follower(client, program, 1.0, print, print).follow(failed) == Ended(
        failed, "FAILED", "7:0"
    )
