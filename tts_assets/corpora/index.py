"""``raw_corpus``: the index of a corpus, one row per utterance.

Each audio file is opened and measured once. Order and content of the rows depend on the corpus
alone, not on file times, reading order or the number of threads. Unusable items are set aside with
a reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.core.artifacts import (
    ArtifactStore,
    CorpusFacts,
    RawCorpus,
    RawCorpusFacts,
    SpeechSegments,
)
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers import READERS
from tts_assets.corpora.readers.files import Audio, Embedded, Entry, file_of
from tts_assets.corpora.sources import Fault, Found, Sources

UTTERANCES_FILE = "utterances.parquet"
ID_DIGITS = 16  # 64 bits of the audio's SHA-256: no collision below a billion utterances
BATCH = 1000  # entries in memory as objects; all others are columns
ROW_GROUP = 100_000

SCHEMA = {
    "id": pl.String,
    "audio": pl.String,
    "pooled": pl.Boolean,
    "audio_sha256": pl.String,
    "duration": pl.Float64,
    "sample_rate": pl.Int32,
    "channels": pl.Int16,
    "speaker": pl.String,
    "language": pl.String,
    "text": pl.String,
    "licence": pl.String,
    "extra": pl.String,
}
ABOUT_UTTERANCES = {
    "id": f"the first {ID_DIGITS} digits of audio_sha256",
    "audio": "file: relative to the corpus root or to the audio pool, else absolute",
    "pooled": "whether the audio lies in the audio pool",
    "audio_sha256": "of the bytes of the file, hexadecimal",
    "duration": "seconds",
    "sample_rate": "Hz, of the file",
    "speaker": "the label in the corpus",
    "text": "the raw text of the corpus",
    "extra": "JSON: further fields of the sample schema",
}
ROW = {**SCHEMA, "where": pl.String}  # the line or file of the entry; not published


@dataclass(frozen=True)
class Utterance:
    """One row of ``utterances.parquet``; see SCHEMA."""

    id: str
    audio: str
    pooled: bool
    audio_sha256: str
    duration: float
    sample_rate: int
    channels: int
    speaker: str
    language: str
    text: str
    licence: str
    extra: str

    def path(self, facts: CorpusFacts) -> Path:
        """The path of the audio; ``facts`` are those of the corpus."""
        return Path(facts.audio_pool if self.pooled else facts.root) / self.audio


def read_entries(root: Path, config: CorpusConfig) -> Iterator[Entry | SetAside]:
    """Yield everything that the reader finds. Raises ConfigError if that is nothing."""
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    found = False
    try:
        for item in READERS[config.reader](root, config):
            found = True
            yield storable(item)
    except missing as error:
        raise ConfigError(
            f"the {config.reader} reader finds no corpus at {root}: {error}; correct path or reader"
        ) from None
    if not found:
        raise ConfigError(f"the {config.reader} reader finds nothing at {root}; is reader correct?")


def index_corpus(
    name: str, root: Path, config: CorpusConfig, store: ArtifactStore, result: Path
) -> RawCorpusFacts:
    """Write ``utterances.parquet`` and ``set_aside.jsonl`` to ``result``.

    Parts of recordings and audio inside Parquet files become files of the audio pool of ``store``.
    """
    folder = root if root.is_dir() else root.parent  # a corpus may be one file
    sources = Sources(store)
    entries, set_aside, frames = 0, [], []
    for batch in batches(read_entries(root, config)):
        found = sources.open(item.audio for item in batch if isinstance(item, Entry))
        entries += len(batch)
        items = [
            item if isinstance(item, SetAside) else to_row(folder, item, found) for item in batch
        ]
        set_aside += [item for item in items if isinstance(item, SetAside)]
        rows = [item for item in items if not isinstance(item, SetAside)]
        frames.append(pl.DataFrame(rows, schema=ROW, orient="row"))
    table, duplicates = separate_duplicates(pl.concat(frames))
    set_aside += duplicates
    table.write_parquet(result / UTTERANCES_FILE, row_group_size=ROW_GROUP)
    write_set_aside(result / SET_ASIDE_FILE, set_aside)
    return RawCorpusFacts(
        corpus=name,
        root=str(folder),
        audio_pool=str(store.audio_pool),
        language=config.language,
        licence=config.licence,
        entries=entries,
        utterances=len(table),
        set_aside=len(set_aside),
        hours=round(math.fsum(table["duration"]) / 3600, 6),
        speakers=table["speaker"].n_unique(),
    )


def to_row(folder: Path, item: Entry, found: Mapping[Audio, Found]) -> tuple[Any, ...] | SetAside:
    """The ROW of an entry and its measured audio, or the reason why it is set aside."""
    audio, measured = item.audio, found[item.audio]
    path = item.file
    if isinstance(measured, Fault):
        what = "" if isinstance(audio, Embedded) else f"{path.name}: "
        return SetAside(item.where, measured.reason, what + measured.detail)
    name = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    extra = item.extra
    if measured.cut_from:
        end = measured.first + measured.frames
        source = {
            "recording": name,
            "recording_sha256": measured.cut_from,
            "start": measured.seconds(measured.first),
            "end": measured.seconds(end),
        }
        extra = {**extra, "original_data": {**extra.get("original_data", {}), **source}}
    return (
        measured.sha256[:ID_DIGITS],
        measured.pooled or name,
        bool(measured.pooled),
        measured.sha256,
        measured.seconds(measured.frames),
        measured.sample_rate,
        measured.channels,
        item.speaker,
        item.language,
        item.text,
        item.licence,
        json.dumps(extra, sort_keys=True, ensure_ascii=False),
        item.where,
    )


def separate_duplicates(rows: pl.DataFrame) -> tuple[pl.DataFrame, list[SetAside]]:
    """The utterances sorted by id, each audio once (first by path and text), and the duplicates."""
    rows = rows.sort("id", "pooled", "audio", "text", "speaker", "extra", "where")
    first = rows["id"].is_first_distinct()
    table = rows.filter(first)
    again = rows.filter(~first).join(table.select("id", of="where"), on="id")
    duplicates = [
        SetAside(where, "duplicate audio", f"the same bytes as {of}; drop one of them")
        for where, of in again.select("where", "of").iter_rows()
    ]
    return table.select(SCHEMA.keys()), duplicates


def batches(entries: Iterator[Entry | SetAside]) -> Iterator[list[Entry | SetAside]]:
    """Lists of up to BATCH entries."""
    while batch := list(islice(entries, BATCH)):
        yield batch


def storable(item: Entry | SetAside) -> Entry | SetAside:
    """The item, or a SetAside if it cannot be written as UTF-8.

    File names may be any bytes, and JSON may contain lone surrogates.
    """

    def path(audio: Audio) -> str:
        return str(file_of(audio))

    try:
        json.dumps(vars(item), default=path, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        what = item.where if isinstance(item, Entry) else item.what
        detail = f"{error}; rename the file, or mend the line"
        return SetAside(what.encode(errors="backslashreplace").decode(), "not Unicode", detail)
    return item


def utterances(corpus: RawCorpus | SpeechSegments) -> Iterator[Utterance]:
    """Yield the rows of a corpus, sorted by id."""
    for row in pl.read_parquet(corpus.path / UTTERANCES_FILE).iter_rows(named=True):
        yield Utterance(**row)
