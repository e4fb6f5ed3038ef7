"""``raw_corpus``: the index of a corpus, one row per utterance.

Each audio file is opened and measured once. Order and content of the rows depend on the corpus
alone, not on file times, reading order or the number of threads. Unusable items are set aside with
a reason.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    SetAside,
    raise_nothing_usable,
    read_set_aside,
    write_set_aside,
)
from tts_assets.core.artifacts import (
    ArtifactStore,
    RawCorpus,
    RawCorpusFacts,
    SpeechSegments,
)
from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers import READERS
from tts_assets.corpora.readers.files import (
    AUDIO_SUFFIXES,
    OTHER_AUDIO,
    Audio,
    Embedded,
    Entry,
    file_of,
)
from tts_assets.corpora.samples import POOL, AudioFolders
from tts_assets.corpora.sources import Fault, Found, Sources

UTTERANCES_FILE = "utterances.parquet"
ID_DIGITS = 16  # 64 bits of the audio's SHA-256: no collision below a billion utterances
LEAST_ROWS = 10  # of a corpus whose statistics say something
IDENTIFIER = r"^\S*(?:[0-9_/\\]\S*|\.[a-z0-9]{2,4})$"  # one word with a digit, _, slash or suffix
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

    def path(self, folders: AudioFolders) -> Path:
        """The path of the audio; ``folders`` are those of the corpus."""
        return folders.path(f"{POOL}{self.audio}" if self.pooled else self.audio)


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


def usable_index(
    name: str, root: Path, config: CorpusConfig, store: ArtifactStore, result: Path
) -> RawCorpusFacts:
    """:func:`index_corpus`. Raises an error with all reasons if no utterance is usable."""
    facts = index_corpus(name, root, config, store, result)
    if not facts.utterances:
        what = f"corpus {name!r} has no usable utterance of {facts.entries}"
        raise_nothing_usable(what, read_set_aside(result / SET_ASIDE_FILE))
    return facts


def index_corpus(
    name: str, root: Path, config: CorpusConfig, store: ArtifactStore, result: Path
) -> RawCorpusFacts:
    """Write ``utterances.parquet`` and ``set_aside.jsonl`` to ``result``.

    Parts of recordings and audio inside Parquet files become files of the audio pool of ``store``.
    """
    folder = root if root.is_dir() else root.parent  # a corpus may be one file
    sources = Sources(store)
    entries, set_aside, frames = 0, [], []
    adjusted: Counter[str] = Counter()
    used: set[str] = set()
    for batch in batches(read_entries(root, config)):
        found = sources.open(item.audio for item in batch if isinstance(item, Entry))
        entries += len(batch)
        used |= {str(item.file) for item in batch if isinstance(item, Entry)}
        adjusted.update(adjustments(batch, found))
        items = [
            item if isinstance(item, SetAside) else to_row(folder, item, found) for item in batch
        ]
        set_aside += [item for item in items if isinstance(item, SetAside)]
        rows = [item for item in items if not isinstance(item, SetAside)]
        frames.append(pl.DataFrame(rows, schema=ROW, orient="row"))
    table, duplicates = separate_duplicates(pl.concat(frames))
    # Messages of libraries may have paths, but the file is digested.
    set_aside = [
        replace(item, detail=item.detail.replace(f"{folder}/", "")) for item in set_aside
    ] + duplicates
    table.write_parquet(result / UTTERANCES_FILE, row_group_size=ROW_GROUP)
    write_set_aside(result / SET_ASIDE_FILE, set_aside)
    return RawCorpusFacts(
        corpus=name,
        root=str(folder),
        language=config.language,
        licence=config.licence,
        entries=entries,
        utterances=len(table),
        set_aside=len(set_aside),
        hours=round(math.fsum(table["duration"]) / 3600, 6),
        speakers=table["speaker"].n_unique(),
        adjusted=dict(sorted(adjusted.items())),
        unused_files=count_unused(root, used),
    )


def adjustments(batch: Iterable[Entry | SetAside], found: Mapping[Audio, Found]) -> Iterator[str]:
    """Yield the tolerated differences of the entries: matched names and clipped samples."""
    for item in batch:
        if isinstance(item, Entry):
            if item.match:
                yield f"name matched by {item.match}"
            audio = found[item.audio]
            if not isinstance(audio, Fault) and audio.peak > 1.0:
                yield "samples above full scale, clipped"


def count_unused(root: Path, used: Collection[str]) -> dict[str, int]:
    """The number of audio files below ``root`` that are not in ``used``, by suffix."""
    if not root.is_dir():
        return {}
    counts: Counter[str] = Counter()
    audio = AUDIO_SUFFIXES | OTHER_AUDIO
    for name in file_names(root):
        if f"{root}/{name}" not in used and (suffix := Path(name).suffix.lower()) in audio:
            counts[suffix] += 1
    return dict(sorted(counts.items()))


def file_names(root: Path) -> Iterator[str]:
    """Yield the paths of all files below ``root``, relative to it."""
    for folder, _, names in os.walk(root):
        below = os.path.relpath(folder, root)
        yield from (name if below == "." else f"{below}/{name}" for name in names)


def plausibility(rows: pl.DataFrame) -> list[str]:
    """Signs of columns in the wrong order, or of one letter case; empty if there are none.

    ``rows`` have ``text`` and ``speaker``.
    """
    signs = []
    texts = rows.filter(pl.col("text") != "")["text"]
    speakers = rows.filter(pl.col("speaker") != "")["speaker"]
    if len(speakers) >= LEAST_ROWS and speakers.n_unique() >= 0.8 * len(speakers):
        signs.append(f"{speakers.n_unique()} speakers in {len(speakers)} clips")
    spaced = speakers.str.strip_chars().str.count_matches(" ") >= 2
    if len(speakers) and spaced.mean() > 0.5:  # type: ignore[operator]
        signs.append(f"speakers look like sentences, for example {speakers[0]!r}")
    if len(texts) >= LEAST_ROWS and texts.n_unique() <= len(texts) / 4:
        signs.append(f"{texts.n_unique()} distinct texts in {len(texts)} clips")
    if len(texts) >= 3 and texts.str.contains(IDENTIFIER).mean() > 0.5:  # type: ignore[operator]
        signs.append(f"texts look like ids or paths, for example {texts[0]!r}")
    return signs + one_letter_case(texts)


def one_letter_case(texts: pl.Series) -> list[str]:
    """A sign if all texts have letters of one case only, as transcripts for ASR do."""
    if len(texts) < LEAST_ROWS:
        return []
    small, capital = (texts.str.contains(letters).any() for letters in (r"\p{Ll}", r"\p{Lu}"))
    if capital and not small:
        return ["all texts are in capitals: they are trained on in small letters"]
    if small and not capital:
        return ["no text has a capital: a model of this corpus does not know them"]
    return []


def to_row(folder: Path, item: Entry, found: Mapping[Audio, Found]) -> tuple[Any, ...] | SetAside:
    """The ROW of an entry and its measured audio, or the reason why it is set aside."""
    audio, measured = item.audio, found[item.audio]
    path = item.file
    if isinstance(measured, Fault):
        what = "" if isinstance(audio, Embedded) else f"{path.name}: "
        return SetAside(item.where, measured.reason, what + measured.detail)
    name = str(path).removeprefix(f"{str(folder).rstrip('/')}/")
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
