"""Audio bytes out of Parquet files, read forward, in the memory of one page however long a file is.

A page has 1 MB, or up to 1024 cells if they are larger; ``datasets`` writes row groups of 100.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tts_assets.audio import BrokenAudio
from tts_assets.corpora.readers.entry import Embedded
from tts_assets.corpora.readers.files import AUDIO_SUFFIXES
from tts_assets.corpora.readers.parquet import STREAMED

ROWS = 16  # of audio at once
SIGNATURES = (
    (0, b"RIFF", ".wav"),
    (0, b"RF64", ".wav"),
    (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"),
    (0, b"ID3", ".mp3"),
    (0, b"\xff\xfb", ".mp3"),  # MPEG layer III without tags: versions 1, 2, 2.5
    (0, b"\xff\xf3", ".mp3"),
    (0, b"\xff\xf2", ".mp3"),
    (0, b"\xff\xe3", ".mp3"),
    (0, b"\xff\xfa", ".mp3"),
    (4, b"ftyp", ".m4a"),
)


def suffix_of(audio: bytes, name: str = "") -> str | None:
    """The suffix of an encoded file by its first bytes, or else that of its ``name``."""
    for offset, signature, suffix in SIGNATURES:
        if audio.startswith(signature, offset):
            return suffix
    suffix = Path(name).suffix.lower()
    return suffix if suffix in AUDIO_SUFFIXES else None


class EmbeddedAudio:
    """Rows of audio columns; cheap where they are asked for in their order."""

    def __init__(self) -> None:
        self._open: tuple[Path, str] | None = None
        self._rows: Iterator[tuple[int, pa.Scalar]] = iter(())
        self._next = 0

    def read(self, wanted: Embedded) -> tuple[bytes, str]:
        """The encoded audio of a row and its suffix. Raises :class:`BrokenAudio`."""
        if self._open != (wanted.file, wanted.column) or wanted.row < self._next:
            self._open = (wanted.file, wanted.column)
            self._rows = _rows(wanted)
        try:
            cell = next((cell for row, cell in self._rows if row == wanted.row), None)
        except (pa.ArrowInvalid, OSError) as error:
            self._open = None
            if getattr(error, "errno", None):
                raise  # of the machine, not of the file
            raise BrokenAudio(wanted.file, "not readable as Parquet", str(error)) from None
        self._next = wanted.row + 1
        return _audio(wanted, cell.as_py() if cell is not None else None)


def _rows(first: Embedded) -> Iterator[tuple[int, pa.Scalar]]:
    """The cells of a column, numbered, from the row group on that holds ``first``."""
    with pq.ParquetFile(first.file, **STREAMED) as file:
        number, groups = 0, list(range(file.num_row_groups))
        while (
            groups and number + (size := file.metadata.row_group(groups[0]).num_rows) <= first.row
        ):
            number += size
            groups.pop(0)
        for batch in file.iter_batches(ROWS, row_groups=groups, columns=[first.column]):
            for cell in batch.column(0):
                yield number, cell
                number += 1


def _audio(wanted: Embedded, value: Any) -> tuple[bytes, str]:
    audio, name = value, ""
    if isinstance(value, dict):
        audio, name = value.get("bytes"), value.get("path") or ""
    if not audio:
        detail = f"only the path {name!r}" if name else "the cell is empty"
        raise BrokenAudio(wanted.file, "no audio bytes", detail)
    suffix = suffix_of(audio, name)
    if suffix is None:
        raise BrokenAudio(wanted.file, "not readable as audio", f"it begins with {audio[:8]!r}")
    return audio, suffix
