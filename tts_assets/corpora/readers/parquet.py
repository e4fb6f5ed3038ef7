"""Reader of Hugging Face Parquet files with embedded audio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tts_assets.core.accounting import SetAside
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig, ParquetOptions
from tts_assets.corpora.readers.files import Embedded, Entry, entry, files_below

BATCH = 4096  # rows of text
# By default pyarrow keeps all pages in memory until the file is closed.
STREAMED: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}


def read_parquet(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Parquet with embedded audio: one file, or a folder of files of any depth.

    The audio column holds ``{bytes, path}``, as ``datasets`` writes it, or plain bytes. ``options``
    name other columns than ``audio`` and ``text``. The audio bytes are not read here, but once when
    the utterance is indexed (``corpora/sources.py``). Raises ConfigError if a column is missing.
    """
    options = config.options if isinstance(config.options, ParquetOptions) else ParquetOptions()
    for path in [root] if root.is_file() else files_below(root, {".parquet"}):
        if isinstance(path, SetAside):
            yield path
            continue
        name = path.name if path == root else str(path.relative_to(root))
        try:
            with pq.ParquetFile(path, **STREAMED) as file:
                yield from _read_file(path, name, file, options, config)
        except PermissionError:
            yield SetAside(name, "no permission to read", "chmod a+r")
        except (pa.ArrowInvalid, OSError) as error:
            yield SetAside(name, "not readable as Parquet", f"{error}; copy it again")


def _read_file(
    path: Path, name: str, file: pq.ParquetFile, options: ParquetOptions, config: CorpusConfig
) -> Iterator[Entry | SetAside]:
    columns = _columns(path, file.schema_arrow, options)
    number = 0
    for batch in file.iter_batches(BATCH, columns=columns):
        for row in range(len(batch)):
            where = f"{name}:{number}"
            cells = {column: _cell(batch, column, row, where) for column in batch.schema.names}
            bad = next((cell for cell in cells.values() if isinstance(cell, SetAside)), None)
            source = cells.get(options.audio_column)
            fields = {"original_data": {"path": source}} if source else {}
            yield bad or entry(
                config,
                Embedded(path, options.audio_column, number),
                where,
                cells.get(options.text_column, ""),
                speaker=cells.get(options.speaker_column, ""),
                **fields,
            )
            number += 1


def _columns(path: Path, schema: pa.Schema, options: ParquetOptions) -> list[str]:
    """The columns to read besides the audio bytes. Raises ConfigError if one is missing."""
    for option, column in options.model_dump().items():
        if column and column not in schema.names:
            raise ConfigError(
                f"{path} has no column {column!r}; set options.{option} to one of {schema.names}"
            )
    name = options.audio_column
    audio = schema.field(name).type
    columns = [column for column in (options.text_column, options.speaker_column) if column]
    if pa.types.is_struct(audio):
        fields = {
            audio.field(number).name: audio.field(number).type for number in range(len(audio))
        }
        audio = fields.get("bytes", audio)
        columns += [f"{name}.path"] if "path" in fields else []
    if not (pa.types.is_binary(audio) or pa.types.is_large_binary(audio)):
        raise ConfigError(
            f"{path}: column {name!r} holds {audio} instead of audio; "
            f"set options.audio_column to one of {schema.names}"
        )
    return columns


def _cell(batch: pa.RecordBatch, column: str, row: int, where: str) -> Any:
    """A text, a number as text, or the path of an audio cell; empty for null."""
    try:
        value = batch.column(column)[row].as_py()
    except UnicodeDecodeError as error:
        return SetAside(where, "text is not UTF-8", f"{column}: {error}")
    if isinstance(value, dict):
        value = value.get("path")
    if value is None:
        return ""
    if not isinstance(value, str | int):
        detail = f"{column} is a {type(value).__name__} instead of text"
        return SetAside(where, "a field of another type", detail)
    return str(value)
