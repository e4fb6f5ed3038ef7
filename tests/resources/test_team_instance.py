"""The example instance of a team, on a real Postgres."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, asset, materialize

from tests.support.slurm_cluster import free_ports

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "deployment" / "dagster.yaml"


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty Postgres of the Debian package, which refuses to run as root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("Postgres is not installed; see .ci/run")
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    shutil.chown(folder, user)
    port = free_ports(1)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"

    def control(*arguments: str) -> None:
        command = [str(programs[-1]), "-D", str(folder / "data"), "-l", str(folder / "log")]
        subprocess.run(
            [*command, *arguments], user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL
        )

    control("initdb", "-o", "--auth=trust --username=dagster --no-sync")
    control("start", "-w", "-o", options)
    yield f"postgresql+psycopg2://dagster@127.0.0.1:{port}/postgres"
    control("stop", "-m", "immediate")
    shutil.rmtree(folder)


def test_the_example_stores_runs_in_postgres(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTS_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("TTS_COMPUTE_LOGS", str(tmp_path / "logs"))
    shutil.copy(EXAMPLE, tmp_path / "dagster.yaml")

    @asset
    def greeting() -> str:
        print("hello, team")
        return "hello"

    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert materialize([greeting], instance=instance).success
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled and instance.run_retries_enabled
        assert instance.global_op_concurrency_default_limit == 1
    with DagsterInstance.from_config(str(tmp_path)) as instance:  # another process would see it
        assert instance.get_latest_materialization_event(AssetKey("greeting")) is not None
    assert any("hello" in path.read_text() for path in (tmp_path / "logs").rglob("*.out"))
