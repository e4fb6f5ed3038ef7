"""A plain folder, at any depth: ``x.wav`` (or flac, mp3, …) beside ``x.txt`` with its words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES, files_below, text_beside


def read_folder(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        where = str(audio.relative_to(root))
        yield entry(config, audio, where, text_beside([audio.with_suffix(".txt")], where))
