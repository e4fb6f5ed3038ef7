"""VCTK: ``txt/<speaker>/<utterance>.txt`` and audio in a tree beside it.

Version 0.92 keeps ``wav48_silence_trimmed/<speaker>/<utterance>_mic1.flac``, version 0.80
``wav48/<speaker>/<utterance>.wav``. Of the two microphones of 0.92 the first is read: the second
recorded the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry, text_file

TREES = (("wav48_silence_trimmed", "_mic1.flac"), ("wav48", ".wav"))


def read_vctk(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    if not (root / "txt").is_dir():
        raise FileNotFoundError(f"{root / 'txt'}, the folder of VCTK's transcripts")
    tree, suffix = next((pair for pair in TREES if (root / pair[0]).is_dir()), TREES[0])
    for path in sorted((root / "txt").rglob("*.txt")):
        where = str(path.relative_to(root))
        words = text_file(path, where)
        if isinstance(words, SetAside):
            yield words
            continue
        speaker = path.parent.name
        audio = root / tree / speaker / (path.stem + suffix)
        yield entry(config, audio, where, words, speaker=speaker)
