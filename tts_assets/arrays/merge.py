"""Merging shards into one pair of arrays, in one pass and at the memory of one shard.

A sample goes to ``val`` or ``train`` by its id alone, and samples stay in shard order, so the
result depends neither on how many shards there are nor on who wrote them.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from tts_assets.arrays.arrays import ArrayError, CodeTable, Ints, Split, parse_sample
from tts_assets.artifacts import ArrayFacts, CodecShards
from tts_assets.split import ValidationSplit, is_validation

BUFFER = 4 << 20  # bytes a file: runs of a few kB become few writes
# A line as this project writes it, of which id and speaker are read without parsing it. That is
# safe: no object begins before the speaker, and as quotes within JSON strings are escaped,
# "speaker_id": " can only be a key. Any other line is parsed, which takes five times as long.
PLAIN_LINE = re.compile(rb'\{"id": "([^"\\{]*)"[^{]*"speaker_id": "([^"\\]*)"')


def merge(shards: CodecShards, validation: ValidationSplit, target: Path) -> ArrayFacts:
    """Write the arrays of all shards to the folder ``target``.

    Raises :class:`ArrayError` if a shard is damaged or the shards are not all that was recorded.
    """
    facts = shards.facts
    speakers: set[str] = set()
    with SplitWriter(target, "train") as train, SplitWriter(target, "val") as val:
        for number in range(facts.shards):
            table = CodeTable.of_shard(shards.path, number)
            lines = table.lines()
            held_out = np.zeros(len(table), dtype=bool)
            for row, line in enumerate(lines):
                identity, speaker = identify(table, line, row)
                held_out[row] = is_validation(identity, validation)
                speakers.add(speaker)
            train.add(table, lines, np.flatnonzero(~held_out))
            val.add(table, lines, np.flatnonzero(held_out))
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
        speakers=len(speakers),
    )


def identify(table: CodeTable, line: bytes, row: int) -> tuple[str, str]:
    """Id and speaker of a sample line."""
    plain = PLAIN_LINE.match(line)
    if plain and plain[1].isascii() and plain[2].isascii():
        return plain[1].decode(), plain[2].decode()
    sample = parse_sample(line, table.samples_path, row + 1)
    return sample["id"], str(sample.get("speaker_id", ""))


class SplitWriter:
    """Writes the three files of one split; complete when the ``with`` block has ended."""

    def __init__(self, folder: Path, split: Split) -> None:
        self._codes = NpyWriter(folder / f"{split}_codes.npy", np.dtype(np.uint16))
        self._index = NpyWriter(folder / f"{split}_codes_index.npy", np.dtype(np.int64))
        self._lines = (folder / f"{split}_samples.jsonl").open("wb", buffering=BUFFER)

    @property
    def samples(self) -> int:
        return self._index.length

    @property
    def codes(self) -> int:
        return self._codes.length

    def add(self, table: CodeTable, lines: list[bytes], rows: Ints) -> None:
        """Append these rows of a table, ascending; neighbours are copied in one piece."""
        if not len(rows):
            return
        lengths = np.diff(table.bounds)[rows]
        self._index.add(self.codes + np.cumsum(lengths) - lengths)
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            self._codes.add(table.codes[table.bounds[run[0]] : table.bounds[run[-1] + 1]])
        self._lines.writelines(lines[row] + b"\n" for row in rows)

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


class NpyWriter:
    """A one-dimensional ``.npy`` file that grows.

    NumPy pads its headers so that the first axis can grow in place: the header is written again,
    with the final length, at the end.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.length = 0
        self._dtype = dtype
        self._stream: BinaryIO = path.open("wb", buffering=BUFFER)
        self._write_header()

    def add(self, values: NDArray[Any]) -> None:
        self._stream.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.length += len(values)

    def close(self) -> None:
        with self._stream:
            self._stream.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)
