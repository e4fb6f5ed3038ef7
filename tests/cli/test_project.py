"""``tts-assets init``, ``add-corpus`` and ``config``: presets, sources of values, refusals."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import AGREED
from tts_assets.cli.__main__ import run_command
from tts_assets.cli.scaffold import toml
from tts_assets.core.config import ConfigError
from tts_assets.project_file import PROJECT_FILE, presets, project_file
from tts_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 25


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    """The JSON that a command prints."""
    capsys.readouterr()
    assert run_command([*arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def source(capsys: pytest.CaptureFixture[str], key: str) -> tuple[Any, str]:
    """Value and source of one key."""
    [row] = shown(capsys, "config", "show", key)
    return row["value"], row["source"]


def test_a_new_project_is_short_and_valid(
    project: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(project.read_text().splitlines()) <= MOST_LINES
    assert project_file({}) == project
    settings = load_settings(environment={})
    assert settings.project.name == "my voices" and settings.root == project.parent
    assert run_command(["init", "."]) == 1
    assert f"already has {PROJECT_FILE}" in capsys.readouterr().err


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_preset_makes_a_voice_of_recordings(
    outside: Path, recordings: Path, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["init", "v", "--preset", preset]) == 0
    path = outside / "v" / PROJECT_FILE
    arguments = ["--project", str(path), "add-corpus", str(recordings), "--name", "ann", *AGREED]
    assert run_command(arguments) == 0
    assert len(path.read_text().splitlines()) <= MOST_LINES
    settings = load_settings(path, environment={})
    corpus = settings.all_corpora("ann")
    assert corpus.path == recordings.resolve()
    assert settings.path(settings.evaluation.suite).is_file()
    if preset == "demo":  # it has recipes of its own
        assert list(settings.sft) == ["announcer"]
        assert settings.path(settings.corpora["asterisk_en"].path).is_dir()
        assert "next: add a recipe [sft.ann]" in capsys.readouterr().out
    else:
        assert settings.sft["ann"].corpora == {"ann": 1.0}
        assert settings.promotion["ann"].candidates == ("ann",)
        assert "next: tts-assets train ann" in capsys.readouterr().out


def test_recordings_become_a_corpus(
    project: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = project.parent / "rec"
    recordings.rename(inside)
    facts = shown(capsys, "add-corpus", "rec", "--until", "2030-12-31", "--publication", *AGREED)
    assert facts == {
        "corpus": "rec",
        "reader": "folder",
        "entries": 6,
        "set_aside": {"no text file": 1},
    }
    table = tomllib.loads(project.read_text())["corpora"]["rec"]
    assert table["path"] == "rec" and table["speaker"] == "rec"
    consent = load_settings(project, environment={}).corpora["rec"].consent
    assert consent is not None and not isinstance(consent, str)
    assert (consent.who, str(consent.until)) == ("Ann Example", "2030-12-31")
    assert consent.publication
    train = load_settings(project, environment={}).codec.train
    assert train is not None and train.corpora == {"rec": 1.0}  # its codec is adapted


def test_a_voice_in_another_language_has_a_suite_of_its_own(
    project: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = project.parent / "german.jsonl"
    suite.write_text('{"id": "a", "category": "all", "text": "Guten Morgen"}\n')
    german = ["--language", "de", "--synthetic", "--suite", str(suite)]
    arguments = ["add-corpus", str(recordings), "--name", "eva", *german]
    assert run_command(arguments) == 1  # the base of the preset reads English
    assert "or one from scratch as the preset scratch-cpu" in capsys.readouterr().err
    project.write_text(project.read_text().replace('"small-cpu"', '"scratch-cpu"'))
    assert run_command(arguments) == 0
    settings = load_settings(project, environment={})
    assert settings.suites["eva"] == ["de"]
    found = settings.evaluation.suites["de"]
    assert (str(found.path), found.whisper) == ("german.jsonl", "none")


def test_a_refused_corpus_changes_nothing(
    project: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = project.read_text()
    (project.parent / "empty").mkdir()
    for arguments, status, message in (
        ([], 2, "no terminal to ask in: give --language"),
        (["--language", "en"], 2, "give --consent NAME, or --synthetic, or --no-consent"),
        ([*AGREED, "--synthetic"], 2, "give one of --consent, --synthetic and --no-consent"),
        (["--language", "de", "--synthetic"], 1, "evaluation.language is 'en', but"),
        (["--language", "english", "--synthetic"], 1, "is not a language tag"),
        (["--language", "en", "--synthetic", "--name", "a b"], 1, "for example 'a_b'"),
        (
            ["--language", "en", "--synthetic", "--reader", "vctk"],
            1,
            "folder of VCTK's transcripts, is missing",
        ),
    ):
        assert run_command(["add-corpus", str(recordings), *arguments]) == status
        assert message in " ".join(capsys.readouterr().err.split())
    assert run_command(["add-corpus", "empty", "--language", "en", "--synthetic"]) == 1
    assert "is not recognized. Put x.txt beside each x.wav" in capsys.readouterr().err
    assert project.read_text() == before
    assert [path.name for path in project.parent.glob(".dagster_project*")] == []
    assert run_command(["add-corpus", str(recordings), "--name", "ann", *AGREED]) == 0
    assert run_command(["add-corpus", str(recordings), "--name", "ann", *AGREED]) == 1
    assert "has 'ann' already" in capsys.readouterr().err


def test_a_terminal_is_asked(project: Path, recordings: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "tts_assets.cli", "add-corpus", str(recordings)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--name", "ann"], stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    os.write(master, b"en\nAnn\nAnn Example\nour audio guide\n")
    output = b""
    while chunk := _read(master):
        output += chunk
    assert process.wait(timeout=60) == 0, output
    corpus = load_settings(project, environment={}).corpora["ann"]
    assert (corpus.language, corpus.speaker) == ("en", "Ann")
    assert b"Who agreed to a model of their voice" in output


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux: the other side is closed
        return b""


def test_the_source_of_each_value_is_shown(
    project: Path,
    recordings: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run_command(["add-corpus", str(recordings), "--name", "ann", *AGREED]) == 0
    with project.open("a") as file:
        file.write("\n[profiles.short]\nsft.ann.eval_every = 7\n")
    monkeypatch.setenv("TTS__SFT__ANN__STEPS", "100")
    monkeypatch.setenv("TTS_PROFILE", "short")
    assert source(capsys, "sft.ann.steps") == (100, "environment")
    assert source(capsys, "sft.ann.eval_every") == (7, "profile short")
    assert source(capsys, "sft.ann.corpora") == (1.0, PROJECT_FILE)
    assert source(capsys, "sft.ann.optimizer.name") == ("muon", "preset small-cpu")
    assert source(capsys, "sft.ann.optimizer.clip") == (1.0, "default")
    rows = shown(capsys, "config", "show")
    assert {row["source"] for row in rows} > {"environment", "default", PROJECT_FILE}
    assert run_command(["config", "show", "sft.ann.steps"]) == 0
    assert capsys.readouterr().out == "sft.ann.steps = 100  # environment\n"
    assert run_command(["config", "show", "sft.bob"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[sft.ann]\nbase = { hub = "a/b" }\ncorpora = { ann = 1.0 }', {"hub": "a/b"}),
        ("[sft.ann]\nepochs = 3.0\ncorpora = { ann = 1.0 }", {"epochs": 3.0, "steps": None}),
        ('[codec]\ncheckpoint = "a/b"', {"checkpoint": "a/b", "train": None}),
    ],
)
def test_the_file_replaces_what_excludes_its_keys(
    project: Path, recordings: Path, text: str, expected: dict[str, Any]
) -> None:
    """A preset has a Llama, steps and an adapted codec; the file may choose the alternatives."""
    corpus = f'\n[corpora.ann]\npath = "{recordings}"\nreader = "folder"\nlanguage = "en"\n'
    project.write_text(f"{project.read_text()}{corpus}\n{text}\n")
    settings = load_settings(project, environment={})
    found: Any = settings.codec if "codec" in text else settings.sft["ann"]
    found = found.base if "base" in text else found
    assert {name: getattr(found, name) for name in expected} == expected


def test_an_unknown_preset_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project.write_text(project.read_text().replace("small-cpu", "small-gpu"))
    with pytest.raises(ConfigError, match="no preset 'small-gpu'; known: finetune-gpu, lora-gpu"):
        load_settings(project, environment={})
    assert run_command(["init", "other", "--preset", "big"]) == 1
    assert "there is no preset 'big'" in capsys.readouterr().err


def test_values_are_written_as_toml() -> None:
    values = {"a b": ['"quoted"\\', "zwölf"], "n": 1.5, "yes": True, "inner": {"x.y": 2}, "no": {}}
    assert tomllib.loads(f"v = {toml(values)}")["v"] == values
