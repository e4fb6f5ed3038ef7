"""Which corpora there are: those of ``dagster_project.toml`` and those under the discovery root.

A direct subfolder of the root is a corpus, and its name the corpus' name. Its ``corpus.toml`` has
the keys of ``[corpora.<name>]`` without ``path``; ``[discovery]`` says what it leaves out, and its
files say which reader it needs. A folder that is not understood is named with the remedy and stops
no other. Nothing is remembered: a folder counts from the moment it is there.

Which reader a folder needs, by a look at a few of its files.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig, DiscoveryConfig, ReaderName
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES
from tts_assets.corpora.readers.layouts import (
    AUDIO,
    CHAPTER_FILES,
    COMMON_VOICE_LIST,
    METADATA_FILE,
    NORMALIZED,
    ORIGINAL,
    PIPE_LIST,
    TREES,
)
from tts_assets.corpora.readers.manifests import RECORDINGS, SAMPLES_FILE

ENTRIES_SEEN = 200  # of each folder: a layout shows at once, and millions of files cost no more
FOLDERS_SEEN = 20
LONGEST_LINE = 10_000


def recognize(folder: Path) -> ReaderName | None:
    """The reader of the first layout that fits; None if none does. Raises OSError.

    Folders of audio without text are not guessed at: whether their folders are speakers, and
    their files utterances, only their owner knows.
    """
    return next((reader for reader, fits in LAYOUTS if fits(folder)), None)


def is_jsonl(folder: Path) -> bool:
    return (folder / SAMPLES_FILE).is_file()


def is_common_voice(folder: Path) -> bool:
    return "client_id" in first_line(folder / COMMON_VOICE_LIST).split("\t")


def is_pipe_list(folder: Path) -> bool:
    """With Coqui's header, or audio by file name: LJSpeech has names without a suffix."""
    cells = first_line(folder / PIPE_LIST).split("|")
    named = Path(cells[0]).suffix.lower() in AUDIO_SUFFIXES
    return len(cells) > 1 and (named or AUDIO in cells)


def is_ljspeech(folder: Path) -> bool:
    return "|" in first_line(folder / METADATA_FILE) and (folder / "wavs").is_dir()


def is_vctk(folder: Path) -> bool:
    return (folder / "txt").is_dir() and any((folder / tree).is_dir() for tree, _ in TREES)


def is_librispeech(folder: Path) -> bool:
    return holds(folder, f"*{CHAPTER_FILES}")


def is_libritts(folder: Path) -> bool:
    return any(holds(folder, f"*{end}") for end in (ORIGINAL, NORMALIZED))


def is_lhotse(folder: Path) -> bool:
    return any(folder.glob(f"*{RECORDINGS}*.jsonl*"))


def is_parquet(folder: Path) -> bool:
    return holds(folder, "*.parquet")


def is_folder(folder: Path) -> bool:
    files = some_files(folder)
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    return any(path.with_suffix(".txt").is_file() for path in audio)


# In this order: a list of samples beside other files is what somebody wrote for this purpose.
LAYOUTS: tuple[tuple[ReaderName, Callable[[Path], bool]], ...] = (
    ("jsonl", is_jsonl),
    ("common_voice", is_common_voice),
    ("pipe_list", is_pipe_list),
    ("ljspeech", is_ljspeech),
    ("vctk", is_vctk),
    ("librispeech", is_librispeech),
    ("libritts", is_libritts),
    ("lhotse", is_lhotse),
    ("parquet", is_parquet),
    ("folder", is_folder),
)


def holds(folder: Path, pattern: str) -> bool:
    return any(fnmatch(path.name, pattern) for path in some_files(folder))


def some_files(folder: Path) -> list[Path]:
    """The first files below ``folder``, depth first: enough to see what lies there."""
    files, folders = [], [folder]
    for _ in range(FOLDERS_SEEN):
        if not folders:
            break
        with os.scandir(folders.pop()) as entries:
            seen = sorted(islice(entries, ENTRIES_SEEN), key=lambda entry: entry.name)
        files += [Path(entry.path) for entry in seen if not entry.is_dir()]
        folders += [Path(entry.path) for entry in reversed(seen) if entry.is_dir()]
    return files


def first_line(path: Path) -> str:
    """The first line of a text file; empty if there is no such file."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        return lines.readline(LONGEST_LINE).rstrip("\r\n")


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
