"""One folder a speaker, without text, as VoxCeleb has it: ``<speaker>/<session>/<clip>.wav``.

For speaker encoders and codecs. A clip directly below its speaker's folder has no session.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES, files_below


def read_speakers(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    for audio in files_below(root, AUDIO_SUFFIXES):
        if isinstance(audio, SetAside):
            yield audio
            continue
        where = audio.relative_to(root)
        if len(where.parts) < 2:
            detail = "clips belong into a folder named after their speaker"
            yield SetAside(str(where), "no speaker folder", detail)
            continue
        speaker, *session, _ = where.parts
        fields = {"original_data": {"session": "/".join(session)}} if session else {}
        yield entry(config, audio, str(where), "", speaker=speaker, **fields)
