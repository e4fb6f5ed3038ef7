"""Merge shards of codes into two arrays, in one pass, with the memory of two shards.

The split of a sample follows from its id, recording or speaker, and samples stay in shard order.
The result therefore does not depend on the number of shards or on the process that wrote them. Runs
of consecutive samples are copied in one piece. While one thread writes a shard, another reads the
next one and hashes its ids.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tts_assets.arrays.arrays import (
    ArrayError,
    CodeTable,
    NpyWriter,
    Pieces,
    Split,
    pieces_of,
    read_ids,
    write_pieces,
)
from tts_assets.core.accounting import ValidationSplit, held_out
from tts_assets.core.artifacts import (
    ArrayFacts,
    ArtifactStore,
    CodecShards,
    Handle,
    SampleManifest,
)
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.corpora.validation import held_out_samples, settled

H = TypeVar("H", bound=Handle)


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
