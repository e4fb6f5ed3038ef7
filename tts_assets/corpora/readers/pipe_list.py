"""Lists with columns between bars, as Coqui TTS and VITS train from.

``path`` is the list, or a folder with ``metadata.csv``. With Coqui's header
(``audio_file|text|speaker_name``) columns are read by name. Without a header a line is
``audio|text`` or, as in VITS, ``audio|speaker|text``. Audio lies below the list's folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers.entry import Entry, entry
from tts_assets.corpora.readers.files import inside, lines

DEFAULT_LIST = "metadata.csv"
AUDIO, TEXT, SPEAKER = "audio_file", "text", "speaker_name"
PLAIN = {2: [AUDIO, TEXT], 3: [AUDIO, SPEAKER, TEXT]}


def read_pipe_list(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    path = root / DEFAULT_LIST if root.is_dir() else root
    header: list[str] | None = None
    for number, line in lines(path):
        if isinstance(line, SetAside):
            yield line
            continue
        cells = line.split("|")
        where = f"{path.name}:{number}"
        if number == 1 and AUDIO in cells:
            header = cells
            continue
        columns = header or PLAIN.get(len(cells))
        if columns is None or len(cells) != len(columns):
            detail = f"{len(cells)} columns; a line is audio|text or audio|speaker|text"
            yield SetAside(where, "other columns", detail)
            continue
        row = dict(zip(columns, map(str.strip, cells), strict=True))
        audio = inside(path.parent, row[AUDIO], where)
        yield entry(config, audio, where, row.get(TEXT, ""), speaker=row.get(SPEAKER, ""))
