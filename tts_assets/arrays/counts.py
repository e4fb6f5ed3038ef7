"""Whether the counts of all stages add up, from a corpus' entries to train + val.

    entries       = utterances + not usable     raw_corpus
    recordings    -> clips                      speech_segments, where there is one
    in            = kept + rejected             filtered_samples
    in            = encoded + set aside         codec_shards
    encoded       = train + val                 code_arrays

What a stage took in must be what the stage before it gave. Rows and lines are counted in the
files themselves, of the very artifacts that these arrays were made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import polars as pl

from tts_assets.arrays.arrays import SPLITS, CodeTable
from tts_assets.arrays.files import ArrayError, count_lines, map_npy
from tts_assets.core.accounting import SET_ASIDE_FILE
from tts_assets.core.artifacts import (
    ArtifactStore,
    CodeArrays,
    CodecShards,
    Handle,
    RawCorpus,
    SampleManifest,
    SpeechSegments,
)
from tts_assets.corpora.filter import KEPT_FILE, REJECTED_FILE
from tts_assets.corpora.index import UTTERANCES_FILE

Numbers = dict[str, int]
H = TypeVar("H", bound=Handle)


def add_up_stages(store: ArtifactStore, arrays: CodeArrays) -> Numbers:
    """All counts, sources last. Raises :class:`ArrayError` where two of them disagree.

    Arrays that were imported have no stages before them.
    """
    tables = {split: CodeTable.of_split(arrays.path, split) for split in SPLITS}
    numbers: Numbers = {split: len(table) for split, table in tables.items()}
    numbers["codes"] = sum(len(table.codes) for table in tables.values())
    shards = made_from(store, arrays, CodecShards)
    if shards is None:
        return numbers
    numbers |= shard_numbers(shards)
    agree(arrays, "train + val samples", sum(numbers[s] for s in SPLITS), numbers["encoded"])
    agree(arrays, "codes", numbers["codes"], shards.facts.codes)
    samples = made_from(store, shards, SampleManifest)
    if samples is None:
        return numbers
    numbers |= sample_numbers(samples)
    agree(shards, "samples taken in", shards.facts.samples_in, numbers["kept"])
    return numbers | utterance_numbers(store, samples)


def shard_numbers(shards: CodecShards) -> Numbers:
    indexes = (shards.path / f"shard-{n:05}.index.npy" for n in range(shards.facts.shards))
    encoded = sum(len(map_npy(path, "int64")) for path in indexes)
    aside = count_lines(shards.path / SET_ASIDE_FILE)
    agree(shards, "encoded + set aside", encoded + aside, shards.facts.samples_in)
    return {"encoded": encoded, "not_encoded": aside}


def sample_numbers(samples: SampleManifest) -> Numbers:
    kept, rejected = (count_lines(samples.path / name) for name in (KEPT_FILE, REJECTED_FILE))
    agree(samples, "kept + rejected", kept + rejected, samples.facts.samples_in)
    return {"kept": kept, "rejected": rejected}


def utterance_numbers(store: ArtifactStore, samples: SampleManifest) -> Numbers:
    """From the filters back to the recordings, through segments if there are any."""
    numbers: Numbers = {}
    took, what = samples.facts.samples_in, "samples taken in"
    later: Handle = samples
    segments = made_from(store, samples, SpeechSegments)
    if segments is not None:
        clips = count_rows(segments.path)
        agree(later, what, took, clips)
        # A corpus of utterances passes through: each is its own recording.
        took, what, later = segments.facts.recordings or clips, "recordings", segments
        numbers |= {"clips": clips, "not_segmented": count_lines(segments.path / SET_ASIDE_FILE)}
    raw = made_from(store, later, RawCorpus)
    if raw is None:
        return numbers
    utterances, aside = count_rows(raw.path), count_lines(raw.path / SET_ASIDE_FILE)
    agree(later, what, took, utterances)
    agree(raw, "utterances + set aside", utterances + aside, raw.facts.entries)
    entries = {"utterances": utterances, "not_usable": aside, "entries": raw.facts.entries}
    return numbers | entries


def made_from(store: ArtifactStore, handle: Handle, kind: type[H]) -> H | None:
    """The artifact of a kind that ``handle`` was made from, in the very version; None if it was
    made from none. Raises :class:`ArtifactError` if that is no longer stored."""
    for source in handle.manifest.inputs.values():
        if source.asset == kind.kind:
            folder = store.folder(source.asset, source.partition)
            return kind.open(folder / source.fingerprint)
    return None


def agree(handle: Handle, what: str, found: int, wanted: int) -> None:
    """Raise if two counts differ."""
    if found != wanted:
        raise ArrayError(
            f"{handle.path}: {what} are {found}, but should be {wanted}; delete the folder and "
            f"materialize {handle.asset} again"
        )


def count_rows(folder: Path) -> int:
    rows: int = pl.scan_parquet(folder / UTTERANCES_FILE).select(pl.len()).collect().item()
    return rows
