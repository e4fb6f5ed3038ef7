"""The command from a built wheel, outside of the checkout, in folders with spaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import AGREED, write_recordings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("tts_assets", "jobs", "resources", "sensors", "examples", ".dagster/dagster.yaml")
FILES = ("pyproject.toml", "README.md", "LICENSE", "dagster_project.toml")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def copy_sources(folder: Path) -> None:
    """What the wheel is made of; ``tts_assets/data`` has links to the other folders."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "work")
    for name in (*SOURCES, *FILES):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, symlinks=True, ignore=ignored)
        else:
            shutil.copyfile(ROOT / name, target)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder of the wheel's packages; the other packages are those of this environment."""
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "fresh place"
    copy_sources(source)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels))
    subprocess.run([*PIP, *build, str(source)], check=True)
    shutil.rmtree(source)
    [wheel] = wheels.glob("*.whl")
    install = ("install", "--no-deps", "--no-compile", "--target", str(site))
    subprocess.run([*PIP, *install, str(wheel)], check=True)
    return site


@pytest.mark.slow
def test_the_wheel_works_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    """The installed folder is before the checkout on the path."""
    names = ("TTS_PROJECT", "TTS_PROFILE", "DAGSTER_HOME")
    bare = {key: value for key, value in os.environ.items() if key not in names}
    environment = {**bare, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(folder: Path, *arguments: str) -> str:
        command = [sys.executable, str(installed / "bin" / "tts-assets"), *arguments]
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(tmp_path, "init", "my voices")
    project = tmp_path / "my voices"
    recordings = write_recordings(tmp_path / "the recordings")
    assert "set aside: 1" in run(project, "add-corpus", str(recordings), *AGREED)
    below = project / "pipeline"  # commands work in any folder of a project
    rows = json.loads(run(below, "config", "show", "evaluation.suite", "--json"))
    suite = Path(rows[0]["value"])
    assert suite.is_relative_to(installed) and rows[0]["source"] == "preset small-cpu"
    shown = run(below, "run", "--select", "evaluation_suite")
    assert f"  evaluation_suite  texts {len(suite.read_text().splitlines())}" in shown
    assert (project / "storage" / "evaluation_suite").is_dir()
    [again] = json.loads(run(below, "run", "--select", "evaluation_suite", "--json"))
    assert again["what"] == "assets evaluation_suite" and len(again["run"]) == 36
