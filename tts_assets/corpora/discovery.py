"""Finds corpora: those of ``dagster_project.toml``, and the subfolders of the discovery root.

A subfolder of the root is a corpus with the name of the folder. Its ``corpus.toml`` has the keys of
``[corpora.<name>]`` without ``path``; ``[discovery]`` has their defaults, and the reader is
recognized from a few files. A folder that cannot be used is reported with a remedy and does not
affect the others. No state is kept: a new folder is a corpus at once.
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
from tts_assets.corpora.readers import CHAPTER_FILES, NORMALIZED, ORIGINAL, TREES
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES
from tts_assets.corpora.readers.lists import COMMON_VOICE_LIST, METADATA_FILE, PIPE_LIST
from tts_assets.corpora.readers.manifests import RECORDINGS, SAMPLES_FILE

CORPUS_FILE = "corpus.toml"
LONGEST_NAME = 100  # part of folder names, which end at 255
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
ENTRIES_SEEN = 200  # per folder; enough to recognize a layout, whatever the number of files
FOLDERS_SEEN = 20
LONGEST_LINE = 10_000


class Corpus(NamedTuple):
    """The absolute path of a corpus, and its configuration."""

    path: Path
    config: CorpusConfig


@dataclass(frozen=True)
class Corpora:
    """All corpora by name. ``project`` is the base of relative paths."""

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
        """All present corpora, and a message with a remedy for each unusable folder."""
        found = {name: self(name) for name in self.declared}
        if self.root is None:
            return found, []
        try:
            folders = sorted(p for p in self.root.iterdir() if p.is_dir() and p.name[0] != ".")
        except OSError as error:
            return found, [f"no corpora are discovered: {error}; correct root in [discovery]"]
        problems = []
        taken = [corpus.path for corpus in found.values()]
        for folder in folders:
            if any(path.is_relative_to(folder.resolve()) for path in taken):
                continue  # a declared corpus
            try:
                found[folder.name] = self._discovered(folder)
            except (ConfigError, OSError) as error:
                problems.append(f"{folder} is not used: {error}")
        return found, problems

    def _discovered(self, folder: Path) -> Corpus:
        check_name(folder.name)
        if folder.name in self.declared:
            raise ConfigError("a declared corpus of another folder has the same name; rename one")
        return describe_folder(folder, self.discovery)


def check_name(name: str, what: str = "corpus") -> None:
    """Raise ConfigError if ``name`` is not valid as a partition and a folder of the storage.

    ``what`` has the name: a corpus, a recipe, a suite, and so on.
    """
    if NAME.fullmatch(name) and "..." not in name and len(name) <= LONGEST_NAME:
        return
    better = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:LONGEST_NAME].strip("_-") or f"my_{what}"
    raise ConfigError(
        f"{name!r} is not a valid name of a {what}: use up to {LONGEST_NAME} letters a to z, "
        f"digits, '_', '-' and '.', a letter or digit first; for example {better!r}"
    )


def describe_folder(folder: Path, discovery: DiscoveryConfig) -> Corpus:
    """A discovered corpus. Raises ConfigError with the keys that ``corpus.toml`` needs."""
    path = folder / CORPUS_FILE
    values = read_toml(path) if path.is_file() else {}
    if "path" in values:
        raise ConfigError(f"{path}: path is the folder itself; drop it")
    defaults = discovery.model_dump(exclude={"root"}, exclude_none=True)
    values = {"reader": values.get("reader") or recognize(folder)} | defaults | values
    if values["reader"] is None:
        raise ConfigError(
            f"its layout is not recognized; write reader = … to {path}, one of "
            f"{', '.join(get_args(ReaderName))}"
        )
    if "language" not in values:
        raise ConfigError(
            f"its language is not known; write language = 'en' to {path}, or to [discovery] of "
            f"dagster_project.toml if all corpora there are English"
        )
    root = folder.resolve()
    return Corpus(root, CorpusConfig.parse(values | {"path": root}, str(path)))


def read_toml(path: Path) -> dict[str, object]:
    """The values of a TOML file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def recognize(folder: Path) -> ReaderName | None:
    """The reader of the first layout that fits; None if none does. Raises OSError.

    Folders of audio without text are not recognized: files do not tell whether folders are
    speakers and whether files are utterances or long recordings.
    """
    return next((reader for reader, fits in LAYOUTS if fits(folder)), None)


def is_jsonl(folder: Path) -> bool:
    """Whether the folder has ``samples.jsonl``."""
    return (folder / SAMPLES_FILE).is_file()


def is_common_voice(folder: Path) -> bool:
    """Whether the folder has ``validated.tsv`` with a column ``client_id``."""
    return "client_id" in first_line(folder / COMMON_VOICE_LIST).split("\t")


def is_pipe_list(folder: Path) -> bool:
    """Whether a list has Coqui's header, or audio names with a suffix, unlike LJSpeech."""
    cells = first_line(folder / PIPE_LIST).split("|")
    named = Path(cells[0]).suffix.lower() in AUDIO_SUFFIXES
    return len(cells) > 1 and (named or "audio_file" in cells)


def is_ljspeech(folder: Path) -> bool:
    """Whether the folder has ``metadata.csv`` with bars, and ``wavs``."""
    return "|" in first_line(folder / METADATA_FILE) and (folder / "wavs").is_dir()


def is_vctk(folder: Path) -> bool:
    """Whether the folder has the trees of VCTK."""
    return (folder / "txt").is_dir() and any((folder / tree).is_dir() for tree, *_ in TREES)


def is_librispeech(folder: Path) -> bool:
    """Whether the folder has ``*.trans.txt`` files."""
    return holds(folder, f"*{CHAPTER_FILES}")


def is_libritts(folder: Path) -> bool:
    """Whether the folder has ``*.normalized.txt`` or ``*.original.txt`` files."""
    return any(holds(folder, f"*{end}") for end in (ORIGINAL, NORMALIZED))


def is_lhotse(folder: Path) -> bool:
    """Whether the folder has a recordings manifest."""
    return any(folder.glob(f"*{RECORDINGS}*.jsonl*"))


def is_parquet(folder: Path) -> bool:
    """Whether the folder has Parquet files."""
    return holds(folder, "*.parquet")


def is_folder(folder: Path) -> bool:
    """Whether a text file lies beside an audio file."""
    files = some_files(folder)
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    return any(path.with_suffix(".txt").is_file() for path in audio)


# In this order: an explicit list of samples takes precedence over a layout of files.
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
    """Whether the name of one of the first files fits ``pattern``."""
    return any(fnmatch(path.name, pattern) for path in some_files(folder))


def some_files(folder: Path) -> list[Path]:
    """The first files below ``folder``, depth first."""
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
