"""VCTK: ``txt/<speaker>/<utterance>.txt`` and audio in a tree beside it.

Version 0.92 keeps ``wav48_silence_trimmed/<speaker>/<utterance>_mic1.flac``, version 0.80
``wav48/<speaker>/<utterance>.wav``. Of the two microphones of 0.92 the first is read: the second
recorded the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import files_below, inside, text_file

TREES = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))


def read_vctk(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    texts = root / "txt"
    if not texts.is_dir():
        raise ConfigError(f"{texts}, the folder of VCTK's transcripts, is missing; mend path")
    tree, suffix = next((pair for pair in TREES if (root / pair[0]).is_dir()), TREES[0])
    for path in files_below(texts, {".txt"}):
        if isinstance(path, SetAside):
            yield path
            continue
        where = str(path.relative_to(root))
        speaker = path.parent.name
        audio = inside(root, f"{tree}/{speaker}/{path.stem}{suffix}", where)
        yield entry(config, audio, where, text_file(path, where), speaker=speaker)
