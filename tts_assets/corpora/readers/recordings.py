"""A plain folder of long recordings without text, at any depth: shows, interviews, audiobooks.

One row a recording, with empty text; ``speech_segments`` makes utterances of them. The speaker is
the declared one, or else the name of the folder a recording lies in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES, files_below


def read_recordings(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        folder = audio.parent.name if audio.parent != root else ""
        where = str(audio.relative_to(root))
        yield entry(config, audio, where, "", speaker=config.speaker or folder)
