"""``tts-assets``: help, completion, exit statuses, and the commands of trained voices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from dagster import DagsterInstance
from typer.main import get_command

from tests.promotion.conftest import Publisher
from tests.support.speaking import publish_all
from tts_assets.cli.__main__ import app, run_command
from tts_assets.cli.models import base_of
from tts_assets.cli.pipeline import recipes_of, selection
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
VOICE = """
[corpora.ann]
path = "clips"
reader = "jsonl"
language = "en"
consent = { who = "Ann Example", purpose = "tests" }
[sft.ann]
corpora = { ann = 1.0 }
[sft.ann_long]
base = { recipe = "ann" }
corpora = { ann = 1.0 }
[sft.tiny]
corpora = { ann = 1.0 }
[rlhf.ann_grpo]
base = "ann"
prompts = { texts = "lines.txt" }
[promotion.ann]
candidates = ["ann", "ann_grpo"]
"""


@pytest.fixture
def voice(project: Path, clips: Path) -> Path:
    """A project with a voice of two candidates."""
    (project.parent / "clips").symlink_to(clips)
    project.write_text(project.read_text() + VOICE)
    return project


def commands() -> Iterator[tuple[str, ...]]:
    top = get_command(app)
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        inner = list(getattr(command, "commands", {}))
        yield from (((name, one) for one in inner) if inner else [(name,)])


@pytest.mark.parametrize("names", list(commands()), ids=" ".join)
def test_every_command_has_examples(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*names, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert "Example" in help_text and f"  tts-assets {' '.join(names)}" in help_text


def test_names_of_the_project_are_completed(voice: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_TTS_ASSETS_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": "tts-assets train ann_", "COMP_CWORD": "2"}
    shown = subprocess.run(
        [sys.executable, "-m", "tts_assets.cli"], env=environment, text=True, capture_output=True
    ).stdout
    assert shown.split() == ["ann_grpo", "ann_long"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--version"], 0, ""),
        (["trian"], 2, "No such command 'trian'"),
        (["run"], 2, "give a job, or --select"),
        (["train", "bob"], 1, "there is no voice 'bob'; voices and recipes: ann, ann_long"),
        (["run", "retrian"], 1, "there is no job 'retrian'; jobs: align"),
        (["report", "ann"], 1, "report/ann"),
        (["say", "hello", "--voice", "ann"], 1, "ann has no model yet: tts-assets train ann"),
        (["say", "hello", "--voice", "bob"], 1, "there is no voice 'bob'; voices and recipes: ann"),
        (["promote", "ann"], 1, "serving/ann"),
        (["export", "hub", "ann", "out"], 1, "serving/ann"),
        (["export", "hub", "bob", "out"], 1, "bob has no promoted model"),
        (["provenance", "check", "nowhere.wav"], 2, "nowhere.wav"),
        (["rollback", "bob"], 1, "'bob' is no voice of the project file"),
        (["--project", "nowhere.toml", "report"], 1, "no project file; run the command in a"),
        (["--profile", "gpu", "report"], 1, "no profile 'gpu'"),
    ],
)
def test_failures_have_a_status_and_a_message(
    voice: Path,
    arguments: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TTS_PROFILE", "embedded")  # restored after --profile
    assert run_command(arguments) == status
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_training_a_voice_selects_what_it_depends_on(voice: Path) -> None:
    settings = load_settings(voice, environment={})
    assert recipes_of(settings, "ann") == ["ann", "ann_grpo"]
    keys = set(
        selection(settings, ["ann_long"]).replace('key:"', "").replace('"', "").split(" or ")
    )
    assert keys == {
        "evaluation_suite",
        "sft/ann",
        "sft/ann_long",
        "serving/ann_long",
        "report/ann_long",
    }
    aligned = selection(settings, ["ann_grpo"])
    for key in ("sft/ann", "report/ann", "rlhf/ann_grpo", "comparison/ann_grpo", "promoted/ann"):
        assert f'key:"{key}"' in aligned


def test_the_base_of_a_recipe_is_that_of_its_first_base_recipe(voice: Path) -> None:
    assert base_of(load_settings(voice, environment={}), "ann_grpo") == ""
    hub = {"sft": {"ann": {"base": {"hub": "some/base"}}}}
    settings = load_settings(voice, environment={}, overrides={**hub, "rlhf": {}})
    assert base_of(settings, "ann_long") == "some/base"


def test_a_voice_is_promoted_and_rolled_back(
    voice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher = Publisher(ArtifactStore(voice.parent / "storage"))
    publisher.candidate("ann", "first weights", wer=0.25)
    assert run_command(["report", "ann_long"]) == 1
    assert run_command(["promote", "ann"]) == 0
    assert (voice.parent / ".dagster" / "dagster.yaml").is_file()
    publisher.candidate("ann", "second weights", wer=0.2)
    capsys.readouterr()
    assert run_command(["promote", "ann", "ann", "--because", "better", "--json"]) == 0
    promoted = json.loads(capsys.readouterr().out)
    assert (promoted["recipe"], promoted["why"]) == ("ann", "better")
    assert run_command(["rollback", "ann", "--because", "clicks"]) == 0
    assert "next: tts-assets history ann" in capsys.readouterr().out
    assert run_command(["history", "ann", "--json"]) == 0
    events = json.loads(capsys.readouterr().out)["ann"]
    assert [one["why"] for one in events][1:] == ["better", "clicks"]
    with DagsterInstance.from_config(str(voice.parent / ".dagster")) as instance:
        assert instance.all_asset_keys()


def test_old_versions_are_listed_and_deleted(
    voice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher = Publisher(ArtifactStore(voice.parent / "storage"))
    for weights, wer in (("first", 0.25), ("second", 0.2)):
        publisher.candidate("ann", weights, wer=wer)
    options = ["prune", "--days", "0", "--versions", "1"]
    reports = voice.parent / "storage" / "report" / "ann" / "all"
    assert run_command(options) == 0
    assert "report/ann" in capsys.readouterr().out and versions_in(reports) == 2
    assert run_command([*options, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    versions = [one["version"] for one in listed["versions"]]
    assert not listed["deleted"] and any("report/ann" in one for one in versions)
    assert run_command([*options, "--delete"]) == 0
    assert versions_in(reports) == 1
    assert run_command(["prune", "--versions", "0"]) == 1
    assert "versions" in capsys.readouterr().err


def versions_in(folder: Path) -> int:
    return sum(one.is_dir() and not one.is_symlink() for one in folder.iterdir())


def test_the_figures_of_a_report_are_printed(
    voice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher = Publisher(ArtifactStore(voice.parent / "storage"))
    publisher.candidate("ann_long", "weights", wer=0.25)
    assert run_command(["report", "ann_long"]) == 0
    shown = capsys.readouterr().out
    assert "DNSMOS P.808            3.00" in shown and "report.html" in shown
    assert run_command(["report", "ann_long", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["wer"] == 0.25


def test_a_text_is_synthesized_and_a_model_exported(
    voice: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_all(ArtifactStore(voice.parent / "storage"), clips)
    out = voice.parent / "say it.wav"
    arguments = ["say", "one two", "--voice", "tiny", "--out", str(out)]
    capsys.readouterr()
    assert run_command([*arguments, "--max-tokens", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(out)
    assert soundfile.info(out).samplerate == 16000
    assert run_command([*arguments, "--max-tokens", "20"]) == 0
    assert capsys.readouterr().out.endswith("next: tts-assets serve --voice tiny\n")
    assert run_command(["say", "one two", "--out", "-", "--json"]) == 2
    assert run_command([*arguments, "--no-such-option"]) == 2
    capsys.readouterr()
    assert run_command(["export", "gguf", "tiny", "out", "--weights", "f16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "out/tiny-f16.gguf"
    written = {path.name for path in (voice.parent / "out").iterdir()}
    assert written == {"decoder.onnx", "prompt_ids.json", "tiny-f16.gguf"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["check", "defs"], "All definitions loaded successfully"),
        (["list", "defs", "--assets", "key:sft/ann", "--json"], '"asset_key": "sft/ann"'),
    ],
)
def test_dg_finds_the_definitions_of_a_project(voice: Path, command: list[str], shown: str) -> None:
    command = [str(Path(sys.executable).with_name("dg")), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["DAGSTER_HOME"] = str(voice.parent / ".dagster")
    del environment["TTS_PROJECT"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
