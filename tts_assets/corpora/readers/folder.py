"""A plain folder, at any depth: ``x.wav`` (or flac, mp3, …) beside ``x.txt`` with its words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import AUDIO_SUFFIXES, Entry, entry, text_file


def read_folder(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in sorted(root.rglob("*")):
        if audio.suffix.lower() not in AUDIO_SUFFIXES:
            continue
        where = str(audio.relative_to(root))
        text = audio.with_suffix(".txt")
        if not text.is_file():
            yield SetAside(where, "no text file", f"its words belong into {text.name} beside it")
            continue
        words = text_file(text, where)
        if isinstance(words, SetAside):
            yield words
            continue
        yield entry(config, audio, where, words)
