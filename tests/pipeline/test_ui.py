"""``make ui`` as a user starts it: one instance, its files, and what they do not give away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from dagster import DagsterInstance, DagsterRunStatus
from starlette.testclient import TestClient

from jobs.ui import file_app

ROOT = Path(__file__).resolve().parents[2]
STARTED_SECONDS = 180


@pytest.fixture
def files(tmp_path: Path) -> TestClient:
    storage = tmp_path / "storage"
    (storage / "report" / "<b>").mkdir(parents=True)
    (storage / "report" / "page.html").write_text("<h1>report</h1>")
    (storage / ".work").mkdir()
    (storage / ".work" / "secret").write_text("hidden")
    (tmp_path / "outside").write_text("outside")
    (storage / "report" / "link").symlink_to(tmp_path / "outside")
    return TestClient(file_app(storage), base_url="http://127.0.0.1:3001")


def test_files_and_folders_are_served(files: TestClient) -> None:
    page = files.get("/report/page.html")
    assert (page.status_code, page.text) == (200, "<h1>report</h1>")
    part = files.get("/report/page.html", headers={"Range": "bytes=4-9"})
    assert (part.status_code, part.text) == (206, "report")
    listing = files.get("/report").text
    assert '<a href="/report/page.html">page.html</a>' in listing
    assert "&lt;b&gt;/" in listing and "<b>" not in listing
    assert ".work" not in files.get("/").text


def test_elsewhere_every_path_begins_with_the_secret(files: TestClient, tmp_path: Path) -> None:
    app = file_app(tmp_path / "storage", secret="abc")
    client = TestClient(app, base_url="http://studio.example:3003")
    assert client.get("/abc/report/page.html").text == "<h1>report</h1>"
    assert '<a href="/abc/report/page.html">' in client.get("/abc/report").text
    assert client.get("/report/page.html").status_code == 404


@pytest.mark.parametrize(
    "path", ["/.work/secret", "/report/link", "/../outside", "/%2e%2e/outside", "/missing"]
)
def test_nothing_else_is_served(files: TestClient, path: str) -> None:
    assert files.get(path).status_code == 404


def test_nothing_can_be_written_and_other_hosts_are_refused(files: TestClient) -> None:
    assert files.post("/report/page.html").status_code == 405
    assert files.delete("/report/page.html").status_code == 405
    assert files.get("/report/page.html", headers={"Host": "example.org"}).status_code == 400


def free_ports() -> int:
    """A port that is free, as the next one is."""
    for port in range(20_000, 30_000, 2):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no free ports")


def start(home: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tts_assets.cli", "ui", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(home), "TTS__PROJECT__STORAGE": str(home / "s")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    home, port = tmp_path / "home", free_ports()
    (home / "s" / "report").mkdir(parents=True)
    process = start(home, port)
    try:
        wait_for(f"http://127.0.0.1:{port}/server_info", process)
        yield home, port
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + STARTED_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


@pytest.mark.slow
def test_ctrl_c_cancels_the_runs(tmp_path: Path) -> None:
    """Dagster counts a run as failed that a signal interrupts before it is canceled."""
    home, port = tmp_path / "home", free_ports()
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / ".dagster" / "dagster.yaml").read_text())
    code = "import sys; from jobs.ui import run_dagster; "
    code += f"sys.exit(run_dagster({port}, '-m', 'tests.support.run_jobs'))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/server_info", process)
        from dagster_graphql import DagsterGraphQLClient  # takes half a second to import

        client = DagsterGraphQLClient("127.0.0.1", port_number=port)
        client.submit_job_execution("wait")
        deadline = time.monotonic() + STARTED_SECONDS
        while not (home / "started").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=STARTED_SECONDS)
    assert "stopping 1 run (wait): trainings save a checkpoint, and resume" in output
    assert "SupersessionWarning" not in errors
    with DagsterInstance.from_config(str(home)) as instance:
        assert [run.status for run in instance.get_runs()] == [DagsterRunStatus.CANCELED]


@pytest.mark.slow
def test_a_second_start_is_refused(running: tuple[Path, int]) -> None:
    home, port = running
    assert "report/" in httpx.get(f"http://127.0.0.1:{port + 1}/").text
    other = free_ports()
    _, errors = (second := start(home, other)).communicate(timeout=STARTED_SECONDS)
    assert second.returncode == 1
    assert f"already running at http://127.0.0.1:{port}" in errors
    _, errors = (third := start(home.parent / "other", port)).communicate(timeout=STARTED_SECONDS)
    assert third.returncode == 1 and f"port {port} is in use" in errors
    with socket.socket() as probe:  # nothing is left behind
        probe.bind(("127.0.0.1", other))
