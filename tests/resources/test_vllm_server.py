"""A supervised server process. A small real server replaces vLLM, which starts in a minute."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from resources.vllm_server import VllmServer
from tts_assets.core.processes import ServerDied, marked_processes

SMALL = "tests.support.small_server"


def small(**more: object) -> VllmServer:
    return VllmServer(module=SMALL, start_seconds=120, grace_seconds=5, **more)


def pid_of(url: str) -> int:
    with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
        return int(answer.read())


def test_the_server_is_healthy_and_its_log_is_passed_on() -> None:
    lines: list[str] = []
    with small().serve(["--model", "x"], lines.append) as server:
        assert psutil.pid_exists(pid_of(server.url))
    assert "serving x" in lines
    assert not marked_processes(server.launch_id)


def test_a_dead_server_restarts_at_the_same_address() -> None:
    lines: list[str] = []
    with small().serve(["--model", "x"], lines.append) as server:
        first = pid_of(server.url)
        os.kill(first, signal.SIGKILL)
        server.wait_until_healthy()
        assert pid_of(server.url) != first
        assert server.restarted == 1
    assert "the server ended with status -9; starting again in 1 s" in lines


def test_a_failed_start_is_an_error_with_the_log() -> None:
    with (
        pytest.raises(ServerDied, match=r"ended with status 1, 1 times(.|\n)*no model called bad"),
        small(restarts=0).serve(["--model", "bad"], lambda line: None),
    ):
        pass


def test_a_server_that_does_not_answer_is_an_error() -> None:
    hanging = VllmServer(module=SMALL, start_seconds=2, grace_seconds=5)
    with (
        pytest.raises(ServerDied, match="was not healthy after 2 s"),
        hanging.serve(["--model", "hang"], lambda line: None),
    ):
        pass


def test_the_server_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """As Dagster's run worker may be: by SIGKILL."""
    code = (
        "import time\n"
        "from resources.vllm_server import VllmServer\n"
        f"with VllmServer(module={SMALL!r}, grace_seconds=2)"
        ".serve(['--model', 'x'], lambda line: None) as server:\n"
        "    print(server.launch_id, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    launch_id = parent.stdout.readline().strip()
    assert marked_processes(launch_id)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 120
    while marked_processes(launch_id):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    parent.stdout.close()
