"""Readers of corpus layouts: functions (root, config) that yield entries and set-aside records.

To add a reader: write a function here (``files.py`` has helpers), add it to READERS and its name to
``ReaderName`` in ``corpora/config.py``, and test it on a small real tree of that layout. Readers
open no audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tts_assets.core.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig, ReaderName
from tts_assets.corpora.readers.files import Entry
from tts_assets.corpora.readers.layouts import (
    read_folder,
    read_librispeech,
    read_libritts,
    read_recordings,
    read_speakers,
    read_vctk,
)
from tts_assets.corpora.readers.lists import read_common_voice, read_ljspeech, read_pipe_list
from tts_assets.corpora.readers.manifests import read_jsonl, read_lhotse, read_parquet

Reader = Callable[[Path, CorpusConfig], Iterator[Entry | SetAside]]

READERS: dict[ReaderName, Reader] = {
    "jsonl": read_jsonl,
    "ljspeech": read_ljspeech,
    "folder": read_folder,
    "pipe_list": read_pipe_list,
    "librispeech": read_librispeech,
    "libritts": read_libritts,
    "vctk": read_vctk,
    "common_voice": read_common_voice,
    "speakers": read_speakers,
    "parquet": read_parquet,
    "lhotse": read_lhotse,
    "recordings": read_recordings,
}
