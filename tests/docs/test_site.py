"""Links, commands, paths and configuration keys in the documents are valid."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from tts_assets.cli.__main__ import app
from tts_assets.core.compute import STAGES
from tts_assets.project_file import presets
from tts_assets.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *PAGES,
    *sorted((ROOT / "examples").rglob("README.md")),
]
GENERATED = {"api.md", "benchmarks.md", "contributing.md", "changelog.md"}
FOLDERS = "benchmarks|docs|examples|jobs|locks|resources|scripts|sensors|tests|tts_assets"
CODE_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)


def documents() -> list[Any]:
    """The documents as parameters of a test, with readable ids."""
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS]


def benchmarks() -> list[Any]:
    """The recorded results of benchmarks, as parameters of a test."""
    found = sorted((ROOT / "benchmarks").glob("*.md"))
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in found]


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return CODE_BLOCK.sub("", path.read_text())


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of one language, without their indentation in lists."""
    found = [text for name, text in CODE_BLOCK.findall(path.read_text()) if name == language]
    return [re.sub(r"^ {3}", "", text, flags=re.M) if text[:3] == "   " else text for text in found]


def inline_code(path: Path) -> list[str]:
    """Text in backticks."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose(path))]


def commands(path: Path) -> list[str]:
    """Shell commands of a document: the lines of bash blocks, and inline code."""
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines] + inline_code(path)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", CODE_BLOCK.sub("", path.read_text()), re.M)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("path", documents())
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        generated = file.parent == ROOT / "docs" and file.name in GENERATED
        assert generated or file.exists(), f"{path.name}: {target}"
        if anchor and not generated:
            assert anchor in anchors(file), f"{path.name}: {target}"


@pytest.mark.parametrize("path", documents())
def test_paths_in_the_repository_exist(path: Path) -> None:
    for code in inline_code(path):
        for name in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]+", code):
            made = name.startswith("examples/voices/work")
            assert made or list(ROOT.glob(name.rstrip("/."))), f"{path.name}: {name}"


@pytest.mark.parametrize("path", documents())
def test_modules_of_commands_exist(path: Path) -> None:
    for command in commands(path):
        for module in re.findall(r"-m ((?:tts_assets|jobs)[\w.]*)(?!\S)", command):
            file = ROOT / module.replace(".", "/")
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), command


def test_programs_of_the_command_line_page_exist() -> None:
    text = (ROOT / "docs/command_line.md").read_text()
    programs = text.split("## Programs with a run.json")[1].split("\n## ")[0]
    for module in re.findall(r"`(tts_assets[\w.]*)`", programs):
        source = ROOT / (module.replace(".", "/") + ".py")
        assert source.exists(), module
        assert "__main__" in source.read_text(), module


@pytest.mark.parametrize("path", documents())
def test_commands_of_tts_assets_exist(path: Path) -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for command in commands(path):
        found = re.match(r"(?:TTS\w+=\S+ )?tts-assets ([a-z][\w-]*)", command)
        assert found is None or found.group(1) in known, command


def test_the_script_of_the_screenshots_finds_its_imports() -> None:
    assert "take_screenshot" in runpy.run_path(str(ROOT / "docs/make_screenshots.py"))


def test_the_command_line_page_has_all_make_targets() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)
    text = (ROOT / "docs/command_line.md").read_text()
    assert [name for name in targets if f"`make {name}" not in text] == ["help"]


@pytest.mark.parametrize("path", documents())
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in commands(path):
        for target in re.findall(r"(?:^|&& |[A-Z_]+=\S+ )make ([a-z-]+)", command):
            assert target in targets, command


def test_jobs_of_commands_exist() -> None:
    """Names after ``-j`` are jobs; every job is in the table of runs.md."""
    source = (ROOT / "jobs/asset_jobs.py").read_text()
    jobs = set(re.findall(r'"(\w+)"', "\n".join(re.findall(r"^[A-Z_, ]+ = .*$", source, re.M))))
    used = {
        name
        for path in DOCUMENTS
        for command in commands(path)
        for name in re.findall(r"-j (\w+)", command)
    }
    assert used <= jobs
    table = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/runs.md").read_text(), re.M))
    assert jobs <= table


@pytest.mark.slow  # it imports vLLM for the help of the server
def test_options_of_commands_exist() -> None:
    """``python -m MODULE … --option``: the module's ``--help`` has the option."""
    used: dict[str, set[str]] = {}
    for path in DOCUMENTS:
        for command in commands(path):
            if match := re.match(r"python -m (tts_assets[\w.]*)(.*)", command):
                used.setdefault(match[1], set()).update(re.findall(r"(--[a-z-]+)", match[2]))
    for module, options in used.items():
        if not options:
            continue
        words = [module, *(["rollback"] if module.endswith("promotion") else []), "--help"]
        run = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
        assert all(option in run.stdout for option in options), (module, options, run.stderr)


def members(annotation: Any) -> Iterator[Any]:
    """The models below unions and other generic types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from members(argument)


def unknown_keys(value: Any, annotation: Any, path: str = "") -> Iterator[str]:
    """Keys of a TOML value that the configuration does not have."""
    if isinstance(value, list):
        for item in value:
            yield from unknown_keys(item, annotation, path)
        return
    models = list(members(annotation))
    if not isinstance(value, dict) or not models:
        return
    if keyed(annotation):
        inner = typing.get_args(annotation)[1]
        for key, item in value.items():
            yield from unknown_keys(item, inner, f"{path}.{key}")
        return
    for key, item in value.items():
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        if not fields:
            if not any(keyed(part) for part in typing.get_args(annotation)):
                yield f"{path}.{key}"
            continue
        for field in fields[:1]:
            yield from unknown_keys(item, field.annotation, f"{path}.{key}")


def keyed(annotation: Any) -> bool:
    """Whether a table has keys of the user's choice."""
    return typing.get_origin(annotation) is dict


@pytest.mark.parametrize("path", documents())
def test_configuration_examples_have_known_keys(path: Path) -> None:
    for block in blocks(path, "toml"):
        table = tomllib.loads(block)
        profiles, preset = table.pop("profiles", {}), table.pop("preset", None)
        assert preset in (None, *presets()), path.name
        for part in (table, *profiles.values()):
            part.pop("drop", None)
            assert not list(unknown_keys(part, Settings)), path.name


@pytest.mark.parametrize("path", documents())
def test_tables_in_the_text_are_tables_of_the_project_file(path: Path) -> None:
    """``[sft.<name>]`` and the like in running text, with a key behind it where there is one."""
    for code in inline_code(path):
        match = re.match(r"\[([a-z_0-9.<>]+)\](?: (\w+) = .*)?$", code)
        if not match or path.name == "configuration.md":
            continue
        parts = re.sub(r"<\w+>", "name", match[1]).split(".")
        value: Any = {match[2]: None} if match[2] else {}
        for part in reversed(parts):
            value = {part: value}
        if parts[0] != "profiles" and parts[0] != "tool":
            assert not list(unknown_keys(value, Settings)), f"{path.name}: {code}"


def test_the_navigation_has_every_page_once() -> None:
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml, whose Python names are not needed here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    named = re.findall(r'"([\w./]+\.md)"', json.dumps(navigation))
    assert sorted(named) == sorted({page.name for page in PAGES} | GENERATED)


@pytest.mark.parametrize("path", [pytest.param(page, id=page.stem) for page in PAGES])
def test_each_page_begins_with_what_the_reader_can_do(path: Path) -> None:
    """A title, then a paragraph on what the reader can do after the page."""
    lines = [line for line in path.read_text().splitlines() if line]
    assert lines[0].startswith("# ")
    assert sum(line.startswith("# ") for line in prose(path).splitlines()) == 1
    assert len(lines[1]) > 20 and (lines[1][0].isalpha() or lines[1][0] == "`"), lines[1]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1300


def test_the_tutorial_can_be_loaded(tmp_path: Path) -> None:
    """The tables of the tutorial, added to the demo's project file, are a valid configuration."""
    project = (ROOT / "dagster_project.toml").read_text()
    parts = blocks(ROOT / "docs/tutorial.md", "toml")
    new = [part for part in parts if not part.startswith("[codec]")]
    adapted = project.replace('checkpoint = "examples/codecs/announcer-16khz"\n', "", 1)
    name = tmp_path / "dagster_project.toml"
    name.write_text(adapted.replace("# One machine with GPUs", "\n".join(new) + "\n#", 1))
    (tmp_path / "my_voice").mkdir()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    settings = load_settings(name)
    assert {"my_voice"} <= {*settings.sft} & {*settings.promotion}
    assert settings.codec.train is not None and settings.codec.train.steps == 300


def test_the_reference_lists_every_table() -> None:
    made = runpy.run_path(str(ROOT / "scripts/make_configuration_reference.py"))
    text = (ROOT / "docs/configuration.md").read_text()
    assert all(f"## `[{path}]`" in text for path, _ in made["tables"]())


def has_code(path: Path) -> bool:
    """Whether a module is more than a docstring of one line, or the start of a command."""
    if path.name == "__init__.py":
        return path.read_text().count("\n") > 1
    return path.name != "__main__.py"


def test_the_map_of_the_code_is_complete() -> None:
    """docs/design.md lists every file of every folder, and no other."""
    text = (ROOT / "docs/design.md").read_text().split("## Map of the code")[1].split("\n## ")[0]
    sections = dict(re.findall(r"^### (\S+)$(.*?)(?=^### |\Z)", text, re.M | re.S))
    folders = [path.parent for path in (ROOT / "tts_assets").glob("*/__init__.py")]
    folders += [ROOT / name for name in ("resources", "sensors", "jobs")]
    listed = {
        f"{folder}/{name}"
        for folder, section in sections.items()
        for row in re.findall(r"^\| (`.*?) \|", section, re.M)
        for name in re.findall(r"`([\w/.]+)`", row)
    }
    present = {
        f"{folder.relative_to(ROOT)}/{name}"
        for folder in folders
        for name in [
            *(path.name for path in folder.glob("*.py") if has_code(path)),
            *(f"{path.parent.name}/" for path in folder.glob("*/__init__.py")),
        ]
    }
    assert (sorted(listed - present), sorted(present - listed)) == ([], [])


@pytest.mark.parametrize("path", [*documents(), *benchmarks()])
def test_documents_use_the_terms_of_the_glossary(path: Path) -> None:
    """The table in CONTRIBUTING.md names the terms; headings of messages quote the code."""
    if path.name in ("CONTRIBUTING.md", "configuration.md"):
        return
    text = re.sub(r"^### `.*`$", "", prose(path), flags=re.M)
    old = r"likeness|by heart|incumbent|verdict|word errors|talker|who serves|learnt|goes on from"
    old += r"|judges?|hears?|heard|hearings?"
    assert re.findall(rf"\b(?:{old})\b", text, re.I) == []


@pytest.mark.parametrize("path", documents())
def test_keys_in_the_text_are_keys_of_some_table(path: Path) -> None:
    """``key = value`` and ``table.key = value`` in running text."""
    made = runpy.run_path(str(ROOT / "scripts/make_configuration_reference.py"))
    known = {name for _, model in made["tables"]() for name in model.model_fields}
    known |= {*Settings.model_fields, *STAGES}
    for code in inline_code(path):
        match = re.match(r"([a-z_]+(?:\.[a-z_]+)*) = .", code)
        if match and path.name != "configuration.md":
            assert {*match[1].split(".")} <= known, f"{path.name}: {code}"


@pytest.mark.parametrize("path", documents())
def test_names_of_classes_exist(path: Path) -> None:
    """Names such as ``StreamDecoder`` in running text are names of the code or of its libraries."""
    folders = ("tts_assets", "resources", "sensors", "jobs", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    names = [code for code in inline_code(path) if re.fullmatch(r"(?:[A-Z][a-z]+){2,}\w*", code)]
    if names and path.name != "configuration.md":
        source = "\n".join(file.read_text() for file in files)
        missing = [name for name in names if not re.search(rf"\b{name}\b", source)]
        assert missing == [], path.name
