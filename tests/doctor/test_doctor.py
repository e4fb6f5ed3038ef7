"""The doctor on this very machine: what is there is fine, what is missing has cost and remedy."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tts_assets.doctor import libraries, machine

ROOT = Path(__file__).resolve().parents[2]


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tts_assets.doctor", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        check=False,
    )


def test_this_machine_runs_the_demo_and_every_lack_has_its_remedy() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {row["name"]: row for row in json.loads(done.stdout)}
    for name in ("Python", "project", "torch", "audio codecs", "storage"):
        assert findings[name]["state"] == "fine", findings[name]
    for row in findings.values():
        assert row["fine"] or (row["cost"] and row["remedy"])


def test_what_a_profile_needs_decides_the_exit_status(tmp_path: Path) -> None:
    tools = tmp_path / "bin"  # a PATH without sbatch
    tools.mkdir()
    done = doctor(TTS_PROFILE="slurm", PATH=str(tools))
    assert done.returncode == 1
    assert "!! Slurm         no sbatch" in done.stdout
    assert "compute.slurm.login" in done.stdout
    assert "this profile does not run yet: Slurm" in done.stdout


def test_a_project_file_that_cannot_be_is_shown_with_its_message(tmp_path: Path) -> None:
    project = tmp_path / "project.toml"
    project.write_text("[project]\nnam = 'x'\n")
    done = doctor(TTS_PROJECT=str(project))
    assert done.returncode == 1
    assert "did you mean 'name'?" in done.stdout


def test_it_needs_no_dagster() -> None:
    code = "import sys; import tts_assets.doctor.__main__ as d; d.read_project(); "
    code += "sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_port_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = machine.port(taken.getsockname()[1], "the server", "another port")
    assert finding.state == "missing" and finding.found == "in use"


def test_a_full_path_of_folders_that_are_not_there_yet_is_measured(tmp_path: Path) -> None:
    assert "GB free" in machine.disk(tmp_path / "a" / "b").found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_storage_that_cannot_be_written_is_needed(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert machine.disk(tmp_path).needed


def test_a_cluster_is_asked_through_the_login_node(tmp_path: Path) -> None:
    login = tmp_path / "ssh"  # stands where ssh would, and answers as sinfo does
    login.write_text("#!/bin/sh\necho 'gpu* 4 nodes up'\n")
    login.chmod(0o755)
    assert libraries.slurm((str(login),), needed=True).found == "gpu* 4 nodes up"
    broken = libraries.slurm(("false",), needed=True)
    assert broken.needed and broken.remedy


def test_secrets_are_named_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTS_SMTP_PASSWORD", "hush")
    monkeypatch.delenv("SLACK_BOT_TOKEN", raising=False)
    slack, smtp = libraries.alerts(("SLACK_BOT_TOKEN", "TTS_SMTP_PASSWORD"))
    assert not slack.fine and smtp.fine and "hush" not in smtp.found


def test_vllm_is_looked_for_where_it_is_configured(tmp_path: Path) -> None:
    other = tmp_path / "python"  # an environment of its own, as [vllm] python names it
    other.write_text("#!/bin/sh\necho 7.7.7\n")
    other.chmod(0o755)
    found = libraries.vllm(other, checked=True)
    assert found.fine and found.found == f"7.7.7, of {other}"


def test_a_checked_vllm_is_needed_and_the_check_can_be_switched_off(tmp_path: Path) -> None:
    lacking = libraries.vllm(tmp_path / "nowhere", checked=True)
    assert lacking.needed and "check_vllm = false" in lacking.remedy
    assert not libraries.vllm(tmp_path / "nowhere").needed
