"""Which corpora there are: those of ``dagster_project.toml`` and those under the discovery root.

A direct subfolder of the root is a corpus, and its name the corpus' name. Its ``corpus.toml`` has
the keys of ``[corpora.<name>]`` without ``path``; ``[discovery]`` says what it leaves out, and its
files say which reader it needs. A folder that is not understood is named with the remedy and stops
no other. Nothing is remembered: a folder counts from the moment it is there.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from tts_assets.config import ConfigError
from tts_assets.corpora.config import CorpusConfig, DiscoveryConfig, ReaderName
from tts_assets.corpora.layout import recognize

CORPUS_FILE = "corpus.toml"
LONGEST_NAME = 100  # part of folder names, which end at 255
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Corpus(NamedTuple):
    """Where a corpus lies, absolute, and how it is read."""

    path: Path
    config: CorpusConfig


@dataclass(frozen=True)
class Corpora:
    """All corpora by name. ``project``: the folder that relative paths start from."""

    declared: Mapping[str, CorpusConfig]
    discovery: DiscoveryConfig
    project: Path

    @property
    def root(self) -> Path | None:
        """The discovery root, absolute."""
        return None if self.discovery.root is None else self.project / self.discovery.root

    def __call__(self, name: str) -> Corpus:
        """The corpus of this name. Raises ConfigError with the remedy if there is none."""
        if name in self.declared:
            config = self.declared[name]
            return Corpus((self.project / config.path).resolve(), config)
        check_name(name)
        if self.root is not None and (self.root / name).is_dir():
            return describe_folder(self.root / name, self.discovery)
        where = "" if self.root is None else f", nor does {self.root / name} exist"
        remedy = "" if self.root is None else ", or put its folder there"
        raise ConfigError(
            f"corpus {name!r} is not declared{where}: add [corpora.{name}] to "
            f"dagster_project.toml{remedy}"
        )

    def find(self) -> tuple[dict[str, Corpus], list[str]]:
        """Every corpus there is now, and a line with the remedy for each folder that is none."""
        found = {name: self(name) for name in self.declared}
        if self.root is None:
            return found, []
        try:
            folders = sorted(p for p in self.root.iterdir() if p.is_dir() and p.name[0] != ".")
        except OSError as error:
            return found, [f"no corpora are discovered: {error}; mend [discovery] root"]
        problems = []
        taken = [corpus.path for corpus in found.values()]
        for folder in folders:
            if any(path.is_relative_to(folder.resolve()) for path in taken):
                continue  # declared under whatever name
            try:
                found[folder.name] = self._discovered(folder)
            except (ConfigError, OSError) as error:
                problems.append(f"{folder} is left alone: {error}")
        return found, problems

    def _discovered(self, folder: Path) -> Corpus:
        check_name(folder.name)
        if folder.name in self.declared:
            raise ConfigError("a declared corpus of another folder has its name; rename one")
        return describe_folder(folder, self.discovery)


def check_name(name: str) -> None:
    """Raise ConfigError if ``name`` cannot be a partition and a folder of the storage."""
    if NAME.fullmatch(name) and "..." not in name and len(name) <= LONGEST_NAME:
        return
    better = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:LONGEST_NAME].strip("_-") or "my_corpus"
    raise ConfigError(
        f"{name!r} cannot name a corpus: letters a to z, digits, '_', '-' and '.' can, up to "
        f"{LONGEST_NAME} of them, a letter or digit first; for example {better!r}"
    )


def describe_folder(folder: Path, discovery: DiscoveryConfig) -> Corpus:
    """A discovered corpus. Raises ConfigError saying what its ``corpus.toml`` must say."""
    path = folder / CORPUS_FILE
    values = read_toml(path) if path.is_file() else {}
    if "path" in values:
        raise ConfigError(f"{path}: path is the folder itself; leave it out")
    defaults = discovery.model_dump(exclude={"root"}, exclude_none=True)
    values = {"reader": values.get("reader") or recognize(folder)} | defaults | values
    if values["reader"] is None:
        raise ConfigError(
            f"its layout is none that is recognized; write reader = … into {path}, one of "
            f"{', '.join(get_args(ReaderName))}"
        )
    if "language" not in values:
        raise ConfigError(
            f"its language is not known; write language = 'en' into {path}, or into [discovery] of "
            f"dagster_project.toml if all corpora there are English"
        )
    place = folder.resolve()
    return Corpus(place, CorpusConfig.parse(values | {"path": place}, str(path)))


def read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
