"""A folder of recordings, and a project made by ``tts-assets init``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import CLIPS, CORPUS
from tts_assets.cli.__main__ import run_command

AGREED = ("--language", "en", "--consent", "Ann Example", "--purpose", "our audio guide")


def write_recordings(folder: Path) -> Path:
    """Clips of the demo corpus in the layout ``folder``, and one without a text."""
    folder.mkdir(parents=True)
    for number, name in enumerate(CLIPS[:6]):
        shutil.copyfile(CORPUS / "audio" / f"{name}.g722", folder / f"{number}.g722")
        if number:
            (folder / f"{number}.txt").write_text(name.rpartition("/")[2].replace("-", " "))
    return folder


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    return write_recordings(tmp_path / "recordings" / "Ann's clips")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that belongs to no project."""
    for name in ("TTS_PROJECT", "TTS_PROFILE", "DAGSTER_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("TTS_PROFILE")
    folder = tmp_path / "with spaces"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project file of a new project, which is the working folder."""
    assert run_command(["init", "my voices"]) == 0
    monkeypatch.chdir(outside / "my voices")
    return outside / "my voices" / "dagster_project.toml"
