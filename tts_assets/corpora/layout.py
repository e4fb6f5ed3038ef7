"""Which reader a folder needs, by a look at a few of its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from tts_assets.corpora.config import ReaderName
from tts_assets.corpora.readers import (
    common_voice,
    jsonl,
    lhotse,
    librispeech,
    ljspeech,
    pipe_list,
    vctk,
)
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES

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
    return (folder / jsonl.SAMPLES_FILE).is_file()


def is_common_voice(folder: Path) -> bool:
    return "client_id" in first_line(folder / common_voice.DEFAULT_LIST).split("\t")


def is_pipe_list(folder: Path) -> bool:
    """With Coqui's header, or audio by file name: LJSpeech has names without a suffix."""
    cells = first_line(folder / pipe_list.DEFAULT_LIST).split("|")
    named = Path(cells[0]).suffix.lower() in AUDIO_SUFFIXES
    return len(cells) > 1 and (named or pipe_list.AUDIO in cells)


def is_ljspeech(folder: Path) -> bool:
    return "|" in first_line(folder / ljspeech.METADATA_FILE) and (folder / "wavs").is_dir()


def is_vctk(folder: Path) -> bool:
    return (folder / "txt").is_dir() and any((folder / tree).is_dir() for tree, _ in vctk.TREES)


def is_librispeech(folder: Path) -> bool:
    return holds(folder, f"*{librispeech.CHAPTER_FILES}")


def is_libritts(folder: Path) -> bool:
    return any(holds(folder, f"*{end}") for end in (librispeech.ORIGINAL, librispeech.NORMALIZED))


def is_lhotse(folder: Path) -> bool:
    return any(folder.glob(f"*{lhotse.RECORDINGS}*.jsonl*"))


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
