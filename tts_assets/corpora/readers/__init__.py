"""Corpus layouts. A reader is a function (root, config) -> entries and what had to be set aside.

To add one: a file here (``files.py`` finds and reads files, ``entry.py`` makes entries), a line in
READERS, its name in ``corpora/config.py: ReaderName`` and what ``options`` it has there, and a
test on a small real tree of that layout. A reader opens no audio: it says where audio lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig, ReaderName
from tts_assets.corpora.readers.common_voice import read_common_voice
from tts_assets.corpora.readers.entry import Entry
from tts_assets.corpora.readers.folder import read_folder
from tts_assets.corpora.readers.jsonl import read_jsonl
from tts_assets.corpora.readers.lhotse import read_lhotse
from tts_assets.corpora.readers.librispeech import read_librispeech, read_libritts
from tts_assets.corpora.readers.ljspeech import read_ljspeech
from tts_assets.corpora.readers.parquet import read_parquet
from tts_assets.corpora.readers.pipe_list import read_pipe_list
from tts_assets.corpora.readers.recordings import read_recordings
from tts_assets.corpora.readers.speakers import read_speakers
from tts_assets.corpora.readers.vctk import read_vctk

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
