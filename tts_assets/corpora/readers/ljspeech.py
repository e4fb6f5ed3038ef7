"""LJSpeech: ``metadata.csv`` with ``name|raw text|normalized text`` and ``wavs/<name>.wav``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import inside, lines

METADATA_FILE = "metadata.csv"


def read_ljspeech(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """The last column is read, which is the normalized text where there are three."""
    for number, line in lines(root / METADATA_FILE):
        if isinstance(line, SetAside):
            yield line
            continue
        where = f"{METADATA_FILE}:{number}"
        columns = line.split("|")
        if len(columns) < 2:
            yield SetAside(where, "no text column", "a line is name|text or name|raw|text")
            continue
        audio = inside(root, f"wavs/{columns[0]}.wav", where)
        yield entry(config, audio, where, columns[-1].strip())
