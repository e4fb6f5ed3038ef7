"""Files of a project outside of the checkout, and tables that are added to its project file.

Files that the studio receives are collected in ``recordings/.<name>.upload``, and become the folder
``recordings/<name>`` when they are declared as a corpus.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args

from tts_assets.cli import HOME_FILE, CommandError
from tts_assets.core.accounting import SetAside
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig, ReaderName
from tts_assets.corpora.discovery import check_name, recognize
from tts_assets.corpora.index import read_entries
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES
from tts_assets.project_file import (
    DATA,
    PROJECT_FILE,
    gives_recipes,
    preset_summary,
    presets,
    read_project,
)
from tts_assets.settings import load_settings

RECORDINGS = "recordings"  # folder of uploaded corpora
TEXT_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".gz", ".parquet"})
UPLOADED = AUDIO_SUFFIXES | TEXT_SUFFIXES
LONGEST_PATH = 400  # characters of an uploaded file's path
ROOM = 1 << 30  # bytes that an upload leaves free
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


@dataclass(frozen=True)
class AddedCorpus:
    """A corpus that the project file has now: its entries, and the added ``tables``."""

    name: str
    reader: str
    entries: int
    set_aside: Counter[str]
    tables: str
    with_recipe: bool

    def facts(self) -> dict[str, Any]:
        """What programs need to know."""
        return {
            **{"corpus": self.name, "reader": self.reader},
            **{"entries": self.entries, "set_aside": dict(self.set_aside)},
        }


def declare_corpus(
    project: Path, folder: Path, name: str, suite: Mapping[str, Any], reader: str, **given: Any
) -> AddedCorpus:
    """Declare the recordings of ``folder`` as a corpus and, with a preset, a voice of that name.

    ``given``: further values of ``[corpora.<name>]``; ``suite`` as in :func:`add_corpus_tables`.
    Raises :class:`CommandError` if no entry is usable, and :class:`ConfigError`.
    """
    values = corpus_values(folder, project.parent, reader=reader, **given)
    entries, set_aside = survey(name, project.parent, values)
    if entries == set_aside.total():
        raise CommandError(f"none of {entries} entries of {folder} can be used: {dict(set_aside)}")
    with_recipe = gives_recipes(read_project(project).preset)
    tables = add_corpus_tables(project, name, values, suite, with_recipe=with_recipe)
    return AddedCorpus(name, reader, entries, set_aside, tables, with_recipe)


def recognized(path: Path) -> str:
    """The layout of a folder. Raises :class:`CommandError` if none is recognized."""
    folder = path if path.is_dir() else path.parent
    found = recognize(folder)
    if found is None:
        raise CommandError(
            f"the layout of {folder} is not recognized. Put x.txt beside each x.wav, or name a "
            f"layout with --reader: {', '.join(get_args(ReaderName))}. recordings cuts long "
            "recordings without texts into clips, speakers reads one folder of clips per speaker"
        )
    return found


def consent_values(who: str, purpose: str, until: date | None, publication: bool) -> dict[str, Any]:
    """The value of ``consent`` of a person."""
    given = {"until": until, "publication": publication}
    return {"who": who, "purpose": purpose, **{key: one for key, one in given.items() if one}}


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


def upload_folder(root: Path, name: str) -> Path:
    """Where the files of an upload are collected. Raises :class:`ConfigError` for a bad name."""
    check_name(name)
    return root / RECORDINGS / f".{name}.upload"


def upload_target(root: Path, name: str, path: str, size: int) -> Path:
    """Where the uploaded file ``path`` of ``size`` bytes is written.

    Raises :class:`CommandError` for a path that leaves the folder or is hidden, for a file that no
    layout of a corpus has, and if there is no room.
    """
    parts = path.split("/")
    hidden = any(not part.strip() or part.startswith(".") for part in parts)
    if hidden or len(path) > LONGEST_PATH or not path.isprintable() or "\\" in path:
        raise CommandError(f"{path!r} is not stored: give the file another name")
    if Path(path).suffix.lower() not in UPLOADED:
        raise CommandError(f"{path} is not stored: it is neither audio nor a list of texts")
    folder = upload_folder(root, name)
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < size + ROOM:
        raise CommandError(f"no room left for {path} at {root}: free some space")
    return folder.joinpath(*parts)


def declare_upload(
    project: Path, name: str, reader: str | None, values: Mapping[str, Any]
) -> AddedCorpus:
    """Move an upload to ``recordings/<name>``, and declare it; ``reader`` None: recognized.

    Raises as :func:`declare_corpus`; the upload then stays where it was.
    """
    upload, folder = upload_folder(project.parent, name), project.parent / RECORDINGS / name
    if not upload.is_dir():
        raise CommandError(f"nothing was uploaded for {name!r}: choose recordings first")
    if folder.exists():
        raise CommandError(f"{folder} exists already: choose another name")
    layout = reader or recognized(upload)
    upload.rename(folder)
    try:
        return declare_corpus(project, folder, name, {}, layout, **values)
    except (CommandError, ConfigError, OSError):
        folder.rename(upload)
        raise
