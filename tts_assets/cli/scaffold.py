"""Files of a project outside of the checkout, and tables that are added to its project file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from tts_assets.cli import HOME_FILE, CommandError
from tts_assets.core.accounting import SetAside
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.discovery import check_name
from tts_assets.corpora.index import read_entries
from tts_assets.project_file import DATA, PROJECT_FILE, preset_summary, presets
from tts_assets.settings import load_settings

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
LONGEST_NAME = 40

PROJECT = """\
# The project file. `tts-assets config show` prints every value in force and where it comes from.
# {summary}
preset = {preset}  # others: tts-assets config presets

[project]
name = {name}
storage = "storage"  # the folder of all results, relative to this file
"""
OWN_SUITE = """
# The texts of the reports: write your own suite, or delete this table for that of the preset.
# [evaluation]
# suite = "suite.jsonl"
"""
WORKSPACE = """\
load_from:
  - python_module:
      module_name: pipeline.definitions
      working_directory: .
      location_name: tts
"""
DG = """\
directory_type = "project"

[project]
root_module = "pipeline"
code_location_target_module = "pipeline.definitions"
code_location_name = "tts"
"""
DEFINITIONS = '''\
"""The Dagster definitions of this project: all assets of dagster_project.toml."""

import os
from pathlib import Path

PROJECT_FILE = Path(__file__).resolve().parents[1] / "dagster_project.toml"
os.environ.setdefault("TTS_PROJECT", str(PROJECT_FILE))

from tts_assets.definitions import defs  # noqa: E402

__all__ = ["defs"]
'''
IGNORED = """\
/storage/
/.dagster/*
!/.dagster/dagster.yaml
/wandb/
__pycache__/
.env
"""
README = """\
# {name}

A text-to-speech project of [tts-assets](https://pypi.org/project/tts-assets/).
Only use recordings of people who agreed to it.

```bash
tts-assets doctor                                # what this machine lacks
tts-assets add-corpus recordings/ann             # declares the recordings of one speaker
tts-assets train ann                             # data, training, report, promotion
tts-assets report ann
tts-assets say "good morning" --voice ann
tts-assets ui                                    # the graph, on http://127.0.0.1:3000
```

| file | |
|---|---|
| `dagster_project.toml` | the configuration; `tts-assets config show` prints what is in force |
| `workspace.yaml`, `dg.toml`, `pipeline/` | how Dagster finds the assets: `dg check defs` |
| `.dagster/` | the history of Dagster (`DAGSTER_HOME`) |
| `storage/` | all results |
"""


def write_project(folder: Path, preset: str, name: str) -> list[Path]:
    """Write a new project. Returns its files. Raises :class:`CommandError` if one exists."""
    if preset not in presets():
        raise CommandError(f"there is no preset {preset!r}; presets: {', '.join(presets())}")
    values = {"preset": toml(preset), "name": toml(name), "summary": preset_summary(preset)}
    project = PROJECT.format(**values)
    files = {
        PROJECT_FILE: project + ("" if preset == "demo" else OWN_SUITE),
        "workspace.yaml": WORKSPACE,
        "dg.toml": DG,
        ".gitignore": IGNORED,
        "README.md": README.format(name=name),
        "pipeline/__init__.py": "",
        "pipeline/definitions.py": DEFINITIONS,
        f".dagster/{HOME_FILE}": (DATA / HOME_FILE).read_text(),
    }
    existing = [name for name in files if (folder / name).exists()]
    if existing:
        raise CommandError(f"{folder} already has {', '.join(existing)}: choose another folder")
    for relative, text in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [folder / relative for relative in files]


def name_of(folder: Path) -> str:
    """A name for the corpus of a folder, valid for assets and folders."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", folder.resolve().stem).strip("_").lower()
    return name[:LONGEST_NAME] or "corpus"


def corpus_values(folder: Path, root: Path, **given: Any) -> dict[str, Any]:
    """The values of ``[corpora.<name>]``; a path below ``root`` is relative to it."""
    return {"path": written(folder, root)} | {key: value for key, value in given.items() if value}


def written(path: Path, root: Path) -> str:
    """A path as the project file names it: relative to ``root`` if it is below."""
    path = path.resolve()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def suite_values(path: Path | None, root: Path, language: str, whisper: str) -> dict[str, Any]:
    """The values of ``[evaluation.suites.<language>]``; empty without a path."""
    if path is None:
        return {}
    return {"path": written(path, root), "language": language, "whisper": whisper}


def survey(name: str, root: Path, values: Mapping[str, Any]) -> tuple[int, Counter[str]]:
    """The number of entries that the reader finds, and of those set aside by reason.

    No audio is opened. Raises :class:`ConfigError` if there are none.
    """
    config = CorpusConfig.parse(values, f"corpora.{name}")
    entries, reasons = 0, Counter[str]()
    for item in read_entries((root / config.path).resolve(), config):
        entries += 1
        if isinstance(item, SetAside):
            reasons[item.reason] += 1
    return entries, reasons


def add_corpus_tables(
    project: Path,
    name: str,
    corpus: Mapping[str, Any],
    suite: Mapping[str, Any],
    *,
    with_recipe: bool,
) -> str:
    """Append ``[corpora.<name>]``, and a recipe and a promotion of that name, to the project file.

    ``suite``: the values of ``[evaluation.suites.<language>]``; empty: no table. The file changes
    only if the result is valid. Returns the added text. Raises :class:`ConfigError`, and
    :class:`CommandError` for a known name.
    """
    check_name(name)
    settings = load_settings(project)
    taken = {*settings.corpora, *settings.stage_of, *settings.promotion}
    if name in taken:
        raise CommandError(f"the project file has {name!r} already: choose another with --name")
    added = table(f"corpora.{key(name)}", corpus)
    if with_recipe:
        added += table(f"sft.{key(name)}", {"corpora": {name: 1.0}})
        added += table(f"promotion.{key(name)}", {"candidates": [name]})
    if suite:
        added += table(f"evaluation.suites.{key(suite['language'])}", suite)
    before = project.read_text(encoding="utf-8")
    aside = project.with_name(f".{project.name}.new")
    try:
        aside.write_text(f"{before.rstrip()}\n{added}", encoding="utf-8")
        load_settings(aside)
        aside.replace(project)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(aside), str(project))) from None
    finally:
        aside.unlink(missing_ok=True)
    return added


def table(name: str, values: Mapping[str, Any]) -> str:
    """A table in TOML, after an empty line."""
    lines = "".join(f"{key(one)} = {toml(value)}\n" for one, value in values.items())
    return f"\n[{name}]\n{lines}"


def key(name: str) -> str:
    """A key in TOML."""
    return name if BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def toml(value: Any) -> str:
    """A value in TOML: text, a number, a truth value, a date, a list or a table."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key(name)} = {toml(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml(item) for item in value)}]"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)
