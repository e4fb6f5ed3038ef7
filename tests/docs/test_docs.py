"""Messages, sensors and tables that the documents quote are in the code."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tts_assets.core.artifacts.handle import Manifest
from tts_assets.corpora.samples import SCHEMA
from tts_assets.evaluation.suite import SuiteText

ROOT = Path(__file__).resolve().parents[2]
CODE = ("jobs", "resources", "scripts", "sensors", "tts_assets")
HEADINGS = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)


def literals() -> Iterator[str]:
    """All string literals of the code; the variable parts of f-strings are ``…``."""
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )


@pytest.fixture(scope="module")
def code_literals() -> list[str]:
    return list(literals())


@pytest.mark.parametrize("message", HEADINGS)
def test_messages_are_in_the_code(message: str, code_literals: list[str]) -> None:
    """The fixed parts of a message are in one literal of the code, in their order."""
    parts = [re.escape(part) for part in message.split("…") if part]
    pattern = re.compile(".*".join(parts), re.S)
    assert any(pattern.search(text) for text in code_literals), message


def test_more_than_30_messages_are_explained() -> None:
    assert len(HEADINGS) > 30


def test_the_configuration_reference_is_current() -> None:
    made = runpy.run_path(str(ROOT / "scripts/make_configuration_reference.py"))
    assert (ROOT / "docs/configuration.md").read_text() == made["reference"](), (
        "run: python scripts/make_configuration_reference.py"
    )


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md", "docs/voices.md"])
def test_documents_recommend_the_published_codec_for_other_voices(name: str) -> None:
    """The demo's codec speaks in one voice; the documents name that of the profile ``gpu``."""
    project = tomllib.loads((ROOT / "dagster_project.toml").read_text())
    wanted = project["profiles"]["gpu"]["codec"]["checkpoint"]
    text = " ".join((ROOT / name).read_text().split())
    assert f'checkpoint = "{wanted}"' in text
    assert "the voice of the demo's speaker" in text


def test_sensors_and_schedules_of_commands_exist(code_literals: list[str]) -> None:
    """Each ``sensor start`` and ``schedule start`` of the documents names one of the code."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(path.read_text() for path in documents)
    named = set(re.findall(r"dagster (?:sensor|schedule) start (\w+)", text))
    assert {"failed_runs", "stuck_runs"} <= named
    assert named <= set(code_literals)


def test_make_uses_the_dagster_home_of_the_shell() -> None:
    """``DAGSTER_HOME`` of the shell has precedence over the default, ``.dagster``."""

    def home(**environment: str) -> str:
        bare = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
        show = ["make", "-s", "--eval", "show: ; @echo $$DAGSTER_HOME", "show"]
        return subprocess.run(
            show, cwd=ROOT, env=bare | environment, text=True, capture_output=True, check=True
        ).stdout.strip()

    assert home(DAGSTER_HOME="/srv/dagster") == "/srv/dagster"
    assert home() == str(ROOT / ".dagster")


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("Samples", list(SCHEMA)),
        ("Suites", list(SuiteText.model_fields)),
        ("manifest.json", list(Manifest.model_fields)),
    ],
)
def test_the_tables_of_formats_have_every_field(heading: str, fields: list[str]) -> None:
    text = (ROOT / "docs/formats.md").read_text()
    table = text.split(f"\n## {heading}\n")[1].split("|---", 1)[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == fields


def test_every_file_that_skips_tests_is_listed() -> None:
    """A new reason to skip needs a row that says where its tests run."""
    skips = re.compile(r"pytest\.skip\(|mark\.skipif|importorskip\(|mark\.gpu")
    tests = ROOT / "tests"
    names = set(re.findall(r"`[^`\n]+`", (ROOT / "CONTRIBUTING.md").read_text()))
    missing = [
        str(path.relative_to(tests))
        for path in sorted(tests.rglob("*.py"))
        if path.name not in ("test_docs.py",)
        and skips.search(path.read_text())
        and not {f"`{path.relative_to(folder)}`" for folder in (tests, ROOT)} & names
    ]
    assert missing == []
