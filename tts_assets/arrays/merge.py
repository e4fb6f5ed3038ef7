"""Merge shards of codes into two arrays in one pass, with the memory of two shards; checks of them.

The split of a sample follows from its id, recording or speaker, and samples stay in shard order.
The result therefore does not depend on the number of shards or on the process that wrote them. Runs
of consecutive samples are copied in one piece. While one thread writes a shard, another reads the
next one and hashes its ids.

Checks of ``code_arrays`` return numbers for the metadata, or raise :class:`ArrayError`.
:func:`check_counts` adds up the counts of all stages, from the entries of a corpus to train + val:

    entries       = utterances + not usable     raw_corpus
    recordings    -> clips                      speech_segments, where there is one
    in            = kept + rejected             filtered_samples
    in            = encoded + set aside         codec_shards
    encoded       = train + val                 code_arrays

The input of a stage must be the output of the stage before it. Rows and lines are counted in the
files of the artifact versions that these arrays were made from.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.arrays.arrays import (
    REMEDY,
    SPLITS,
    ArrayError,
    CodeTable,
    NpyWriter,
    Pieces,
    Split,
    count_lines,
    map_npy,
    pieces_of,
    read_ids,
    write_pieces,
)
from tts_assets.arrays.inworld import check_frames, check_range
from tts_assets.core.accounting import SET_ASIDE_FILE, ValidationSplit, held_out
from tts_assets.core.artifacts import (
    ArrayFacts,
    ArtifactError,
    ArtifactStore,
    CodeArrays,
    CodecShards,
    Handle,
    RawCorpus,
    SampleManifest,
    SpeechSegments,
)
from tts_assets.core.metadata import CheckResult, Metadata, column_schema
from tts_assets.corpora.filter import KEPT_FILE, REJECTED_FILE
from tts_assets.corpora.index import UTTERANCES_FILE
from tts_assets.corpora.samples import ABOUT_SAMPLES, FIELDS
from tts_assets.corpora.validation import held_out_samples, settled

H = TypeVar("H", bound=Handle)
Numbers = dict[str, int]
Test = Callable[[ArtifactStore, CodeArrays], CheckResult]


def merge(shards: CodecShards, validation: ValidationSplit, target: Path) -> ArrayFacts:
    """Write the arrays of all shards to the folder ``target``. Returns their facts.

    ``validation`` is settled for the samples. Raises :class:`ArrayError` if a shard is damaged or
    their counts are not those recorded.
    """
    facts = shards.facts
    with (
        SplitWriter(target, "train", facts.dtype) as train,
        SplitWriter(target, "val", facts.dtype) as val,
        ThreadPoolExecutor(1) as thread,
    ):
        writing: Future[None] | None = None
        for number in range(facts.shards):
            table = CodeTable.of_shard(shards.path, number)
            check_type(table, facts.dtype, shards.path)
            held = held_out_table(table, validation)
            pieces = [*train.take(table, ~held), *val.take(table, held)]
            if writing is not None:
                writing.result()
            writing = thread.submit(write_all, pieces)
        if writing is not None:
            writing.result()
    found = (train.samples + val.samples, train.codes + val.codes)
    if found != (facts.samples, facts.codes):
        raise ArrayError(
            f"{shards.path}: its shards hold {found[0]} samples and {found[1]} codes, recorded are "
            f"{facts.samples} and {facts.codes}; delete the folder and materialize "
            f"{shards.asset} again"
        )
    return ArrayFacts(
        corpus=facts.corpus,
        train_samples=train.samples,
        val_samples=val.samples,
        train_codes=train.codes,
        val_codes=val.codes,
        hours=facts.hours,
        codec=facts.codec,
        sample_rate=facts.sample_rate,
        token_rate=facts.token_rate,
        codebook_size=facts.codebook_size,
        frame=facts.frame,
        speakers=facts.speakers,
    )


def held_out_table(table: CodeTable, validation: ValidationSplit) -> NDArray[np.bool_]:
    """Whether each sample is held out, shape (samples,). Most ids are read without parsing."""
    if validation.by in ("recording", "speaker"):
        return held_out_samples([table.samples_path], validation)
    text, bounds = table.lines
    return held_out(read_ids(text, bounds, table.samples_path), validation)


def settled_split(
    store: ArtifactStore, shards: CodecShards, validation: ValidationSplit
) -> ValidationSplit:
    """The split of the samples that ``shards`` were made from.

    Raises ArtifactError if their sample list is no longer stored.
    """
    samples = made_from(store, shards, SampleManifest)
    if samples is None:
        return settled(validation, sorted(shards.path.glob("shard-*.samples.jsonl")))
    return settled(validation, [samples.path / KEPT_FILE])


def made_from(store: ArtifactStore, handle: Handle, kind: type[H]) -> H | None:
    """The version of the input of this kind that ``handle`` was made from; None without one.

    Raises ArtifactError if that version is no longer stored.
    """
    for source in handle.manifest.inputs.values():
        if source.asset == kind.kind:
            folder = store.folder(source.asset, source.partition)
            return kind.open(folder / source.fingerprint)
    return None


def check_type(table: CodeTable, dtype: str, where: Path) -> None:
    """Raise :class:`ArrayError` unless the codes have the type of the recorded codebook size.

    Codes that were truncated to a smaller type cannot be detected otherwise.
    """
    if table.codes.dtype != dtype:
        raise ArrayError(
            f"{where}: codes are {table.codes.dtype}, but a codebook of the recorded size is "
            f"written as {dtype}; delete the folder and make it again"
        )


def write_all(pieces: list[Pieces]) -> None:
    """Write the pieces of several files."""
    for own in pieces:
        write_pieces(*own)


class SplitWriter:
    """Writes the three files of one split. They are complete at the end of the ``with`` block."""

    def __init__(self, folder: Path, split: Split, dtype: str) -> None:
        self._codes = NpyWriter(folder / f"{split}_codes.npy", dtype)
        self._index = NpyWriter(folder / f"{split}_codes_index.npy", "int64")
        self._lines = (folder / f"{split}_samples.jsonl").open("wb", buffering=0)

    @property
    def samples(self) -> int:
        """Samples counted so far."""
        return self._index.length

    @property
    def codes(self) -> int:
        """Codes counted so far."""
        return self._codes.length

    def take(self, table: CodeTable, chosen: NDArray[np.bool_]) -> list[Pieces]:
        """Count the chosen rows (bool, (rows,)) of a table as written, and return their pieces."""
        text, lines = table.lines
        lengths = np.diff(table.bounds)[chosen]
        starts = self.codes + np.cumsum(lengths) - lengths
        # The first row of each run of consecutive rows, and the first row after it.
        runs = np.flatnonzero(np.diff(chosen, prepend=False, append=False)).reshape(-1, 2)
        return [
            self._codes.take(table.codes, table.bounds[runs]),
            self._index.take(starts, np.array([[0, len(starts)]])),
            Pieces(self._lines, pieces_of(text, lines[runs])),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._codes.close()
        self._index.close()
        self._lines.close()


def array_checks(validation: ValidationSplit) -> dict[str, tuple[Test, str]]:
    """All checks by name, with their descriptions. ``validation`` is the split of samples."""

    def passes(test: Callable[[CodeArrays], Numbers]) -> Test:
        return lambda _, arrays: CheckResult(True, test(arrays))

    return {
        "no_sample_is_lost": (
            lambda store, arrays: CheckResult(True, check_counts(store, arrays)),
            "All counts add up, from the entries of the corpus to train + val.",
        ),
        "index_fits_codes": (
            passes(check_tables),
            "The offsets of samples rise and end at the last code.",
        ),
        "samples_fit_index": (
            passes(lambda arrays: check_samples(arrays, validation)),
            "Each index entry has one sample, and the sample is in its split.",
        ),
        "codes_are_in_codebook": (passes(check_codes), "Every code is in the codebook."),
        "files_are_unchanged": (
            passes(check_digests),
            "The digests of all files are those of the manifest.",
        ),
    }


def check_tables(arrays: CodeArrays) -> Numbers:
    """Open both splits, which checks their indexes, and compare type and counts with the facts.

    Raises :class:`ArrayError` for the first difference.
    """
    facts = arrays.facts.model_dump()
    found: Numbers = {}
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        check_type(table, arrays.facts.dtype, arrays.path)
        found |= {f"{split}_samples": len(table), f"{split}_codes": len(table.codes)}
    for name, number in found.items():
        if facts[name] != number:
            raise ArrayError(f"{arrays.path}: {name} is {number}, recorded is {facts[name]}")
    return found


def check_samples(arrays: CodeArrays, validation: ValidationSplit) -> Numbers:
    """Compare lines with index entries, and the split of each sample with ``[validation]``.

    The split of imported arrays was decided elsewhere and is not compared. Raises
    :class:`ArrayError` for the first difference.
    """
    found: Numbers = {}
    split_of = validation.model_copy(update={"by": arrays.manifest.config.get("by")})
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        ids = table.columns("id")["id"]
        if ids.null_count():
            row = int(ids.is_null().arg_max() or 0)
            raise ArrayError(f"{table.samples_path}, line {row + 1} is not a sample with an id")
        if arrays.facts.membership == "hash":
            held = held_out_table(table, split_of)
            wrong = np.flatnonzero(held != (split == "val"))
            if len(wrong):
                name = ids[int(wrong[0])]
                raise ArrayError(f"{table.samples_path}: {name} is not of split {split}")
        found[split] = len(ids)
    return found


def separate_recordings(_: ArtifactStore, arrays: CodeArrays) -> CheckResult:
    """Whether no recording has clips in both splits."""
    numbers = shared_by_splits(arrays)
    recordings = numbers["recordings_in_both_splits"]
    problem = (
        f"{numbers['val_samples_of_training_recordings']} of {arrays.facts.val_samples} validation "
        f"clips are cut from {recordings} recordings that are also trained on: the validation loss "
        "is lower than on new recordings. Choose models by reports, or write "
        "validation.by = 'recording'"
    )
    return CheckResult(not recordings, {**numbers}, problem if recordings else "")


def shared_by_splits(arrays: CodeArrays) -> Numbers:
    """Recordings and speakers with clips in both splits, and the validation clips of the former.

    Clips of one recording share its room, noise and manner, so the validation loss on them is lower
    than on new recordings. ``[validation] by`` splits by recording or speaker.
    """
    train, val = (origins(arrays.path / f"{split}_samples.jsonl") for split in SPLITS)
    of_recordings = val.filter(val["recording"].is_in(train["recording"].unique().implode()))
    speakers = set(val["speaker_id"]) & set(train["speaker_id"]) - {""}
    return {
        "val_samples_of_training_recordings": len(of_recordings),
        "recordings_in_both_splits": of_recordings["recording"].n_unique(),
        "speakers_in_both_splits": len(speakers),
    }


def origins(samples: Path) -> pl.DataFrame:
    """``speaker_id`` and ``recording`` of all samples; null if it was not cut from a recording.

    Raises ArtifactError if a line is damaged.
    """
    names = ("recording_sha256", "recording")
    original = pl.Struct(dict.fromkeys(names, pl.String))
    schema: dict[str, Any] = {"speaker_id": pl.String, "original_data": original}
    if not samples.stat().st_size:
        return pl.DataFrame(schema={"speaker_id": pl.String, "recording": pl.String})
    recording = pl.coalesce(pl.col("original_data").struct.field(name) for name in names)
    rows = pl.scan_ndjson(samples, schema=schema)
    speaker = pl.col("speaker_id").fill_null("")
    try:
        return rows.select(speaker, recording=recording).collect(engine="streaming")
    except pl.exceptions.ComputeError as error:
        raise ArtifactError(f"{samples} cannot be read: {error}; {REMEDY}") from None


def check_codes(arrays: CodeArrays) -> Numbers:
    """Compare all codes with the size of the codebook, and find broken frames."""
    size = arrays.facts.codebook_size
    highest = 0
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        check_range(table, size, arrays.path / f"{split}_codes.npy")
        check_frames(table, arrays.facts.frame, arrays.path / f"{split}_codes.npy")
        highest = max(highest, int(table.codes.max(initial=0)))
    return {"highest_code": highest, "codebook_size": size}


def check_digests(arrays: CodeArrays) -> Numbers:
    """Read all files and compare their digests with the manifest. Raises ArtifactError."""
    arrays.verify()
    return {"bytes": sum(entry.size for entry in arrays.manifest.files.values())}


def check_counts(store: ArtifactStore, arrays: CodeArrays) -> Numbers:
    """Add up the counts of all stages. Imported arrays have no earlier stages.

    Raises ArtifactError if an artifact that these arrays were made from is no longer stored.
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
    """Encoded samples and samples that were set aside, counted in the files of ``shards``."""
    indexes = (shards.path / f"shard-{n:05}.index.npy" for n in range(shards.facts.shards))
    encoded = sum(len(map_npy(path, "int64")) for path in indexes)
    aside = count_lines(shards.path / SET_ASIDE_FILE)
    agree(shards, "encoded + set aside", encoded + aside, shards.facts.samples_in)
    return {"encoded": encoded, "not_encoded": aside}


def sample_numbers(samples: SampleManifest) -> Numbers:
    """Kept and rejected samples of the filters."""
    kept, rejected = (count_lines(samples.path / name) for name in (KEPT_FILE, REJECTED_FILE))
    agree(samples, "kept + rejected", kept + rejected, samples.facts.samples_in)
    return {"kept": kept, "rejected": rejected}


def utterance_numbers(store: ArtifactStore, samples: SampleManifest) -> Numbers:
    """Counts from the filters back to the recordings, through segments if there are any."""
    numbers: Numbers = {}
    took, what = samples.facts.samples_in, "samples taken in"
    later: Handle = samples
    segments = made_from(store, samples, SpeechSegments)
    if segments is not None:
        clips = count_rows(segments.path)
        agree(later, what, took, clips)
        # A corpus of utterances is not cut: each utterance is its own recording.
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


def agree(handle: Handle, what: str, found: int, wanted: int) -> None:
    """Raise :class:`ArrayError` if two counts differ."""
    if found != wanted:
        raise ArrayError(
            f"{handle.path}: {what} are {found}, but should be {wanted}; delete the folder and "
            f"materialize {handle.asset} again"
        )


def count_rows(folder: Path) -> int:
    """Rows of the utterance index of a corpus or of its segments."""
    rows: int = pl.scan_parquet(folder / UTTERANCES_FILE).select(pl.len()).collect().item()
    return rows


def describe_arrays(arrays: CodeArrays) -> Metadata:
    """Metadata: number of samples, type of the codes, columns, and what both splits share."""
    samples = arrays.facts.train_samples + arrays.facts.val_samples
    shared: Metadata = {}
    with suppress(ArtifactError):  # the checks report damaged files
        shared = shared_by_splits(arrays)
    return {
        "dagster/partition_row_count": samples,
        **column_schema(FIELDS, ABOUT_SAMPLES),
        "samples": samples,
        "dtype": arrays.facts.dtype,
        **shared,
    }
