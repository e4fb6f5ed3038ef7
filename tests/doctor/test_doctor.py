"""``python -m tts_assets.doctor`` on this machine, and single findings."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.install import CHOICE, choice, stamp_of, was_moved
from tts_assets.doctor import findings

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


@pytest.mark.slow
def test_this_machine_can_run_the_demo_and_each_missing_part_has_a_remedy() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    for name in ("Python", "project", "torch", "audio codecs", "storage"):
        assert rows[name]["state"] == "fine", rows[name]
    for row in rows.values():
        assert row["fine"] or (row["cost"] and row["remedy"])


@pytest.mark.slow
def test_exit_status_is_1_if_the_profile_needs_a_missing_part(tmp_path: Path) -> None:
    tools = tmp_path / "bin"  # a PATH without sbatch
    tools.mkdir()
    done = doctor(TTS_PROFILE="slurm", PATH=str(tools))
    assert done.returncode == 1
    assert "!! Slurm         no sbatch" in done.stdout
    assert "compute.slurm.login" in done.stdout
    assert "this profile does not run yet: Slurm" in done.stdout


@pytest.mark.slow
def test_an_invalid_project_file_is_reported_with_its_message(tmp_path: Path) -> None:
    project = tmp_path / "project.toml"
    project.write_text("[project]\nnam = 'x'\n")
    done = doctor(TTS_PROJECT=str(project))
    assert done.returncode == 1
    assert "did you mean 'name'?" in done.stdout


@pytest.mark.slow
def test_a_corpus_without_its_folder_is_reported(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    done = doctor(TTS__CORPORA__ASTERISK_EN__PATH=str(nowhere))
    assert done.returncode == 1
    assert f"!! corpus asterisk_en no {nowhere}" in done.stdout
    assert "correct path under [corpora.asterisk_en]" in done.stdout


def test_the_doctor_does_not_import_dagster() -> None:
    code = "import sys; import tts_assets.doctor.findings as d; d.read_project(); "
    code += "sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_port_in_use_is_reported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = findings.port(taken.getsockname()[1], "the server", "another port")
    assert finding.state == "missing" and finding.found == "in use"


def test_commands_of_a_moved_environment_are_reported(tmp_path: Path) -> None:
    assert findings.commands(tmp_path).remedy == "make install"
    script = tmp_path / "dagster"
    script.write_text(f"#!{sys.executable}\n")
    assert findings.commands(tmp_path).fine
    script.write_text("#!/former/checkout/.venv/bin/python\n")
    moved = findings.commands(tmp_path)
    assert moved.needed and "/former/checkout/.venv/bin/python" in moved.found


def test_an_environment_remembers_whether_it_is_for_gpus(tmp_path: Path) -> None:
    assert choice("", tmp_path) == choice("cpu", tmp_path) == ""
    (tmp_path / CHOICE).write_text("13.0")  # make install CUDA=13.0
    assert choice("", tmp_path) == "13.0"  # make ui
    assert choice("cpu", tmp_path) == ""
    (tmp_path / CHOICE).write_text("cpu")
    assert choice("", tmp_path) == "" and choice("13.0", tmp_path) == "13.0"


def test_an_environment_that_was_moved_is_not_up_to_date(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("torch==1\n")
    here, there = tmp_path / "here" / ".venv", tmp_path / "there" / ".venv"
    stamp = stamp_of(lock, here)
    assert stamp == stamp_of(lock, here) != stamp_of(lock, there)
    assert was_moved(stamp, there) and not was_moved(stamp, here)
    assert not was_moved("", here) and not was_moved(stamp.split()[0], here)  # of earlier versions


def test_the_disk_of_a_storage_folder_that_does_not_exist_is_measured(tmp_path: Path) -> None:
    assert "GB free" in findings.disk(tmp_path / "a" / "b").found


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_storage_without_write_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert findings.disk(tmp_path).needed


def test_slurm_is_queried_through_the_login_node(tmp_path: Path) -> None:
    login = tmp_path / "ssh"  # in place of ssh; prints what sinfo prints
    login.write_text("#!/bin/sh\necho 'gpu* 4 nodes up'\n")
    login.chmod(0o755)
    assert findings.slurm((str(login),), needed=True).found == "gpu* 4 nodes up"
    broken = findings.slurm(("false",), needed=True)
    assert broken.needed and broken.remedy


def test_values_of_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTS_SMTP_PASSWORD", "hush")
    monkeypatch.delenv("SLACK_BOT_TOKEN", raising=False)
    slack, smtp = findings.alerts(("SLACK_BOT_TOKEN", "TTS_SMTP_PASSWORD"))
    assert not slack.fine and smtp.fine and "hush" not in smtp.found


def test_vllm_is_looked_up_in_the_configured_environment(tmp_path: Path) -> None:
    other = tmp_path / "python"  # a separate environment, as in [vllm] python
    other.write_text("#!/bin/sh\necho 7.7.7\n")
    other.chmod(0o755)
    found = findings.vllm(other, checked=True)
    assert found.fine and found.found == f"7.7.7, of {other}"


def test_vllm_is_required_if_check_vllm_is_on(tmp_path: Path) -> None:
    lacking = findings.vllm(tmp_path / "nowhere", checked=True)
    assert lacking.needed and "check_vllm = false" in lacking.remedy
    assert not findings.vllm(tmp_path / "nowhere").needed
