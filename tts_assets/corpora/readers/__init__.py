"""Corpus layouts. A reader is a function (root, config) -> entries and what had to be set aside.

To add one: a file here, a line in READERS, its name in ``corpora/config.py: ReaderName``, and a
test on a small real tree of that layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig, ReaderName
from tts_assets.corpora.readers.entry import Entry
from tts_assets.corpora.readers.folder import read_folder
from tts_assets.corpora.readers.jsonl import read_jsonl
from tts_assets.corpora.readers.ljspeech import read_ljspeech

Reader = Callable[[Path, CorpusConfig], Iterator[Entry | SetAside]]

READERS: dict[ReaderName, Reader] = {
    "jsonl": read_jsonl,
    "ljspeech": read_ljspeech,
    "folder": read_folder,
}
