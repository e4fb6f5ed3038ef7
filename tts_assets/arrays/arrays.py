"""Tables of codes and samples, which shards and merged arrays have in common.

A table has three files: all codes one after another (``.npy``, uint16, or int32 for codebooks
larger than 65,536), the offset of the codes of each sample (``.npy``, int64), and one JSON line a
sample. Codes and lines stay on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.arrays.files import (
    REMEDY,
    ArrayError,
    Bytes,
    Ints,
    map_lines,
    map_npy,
    map_raw,
    parse_sample,
)
from tts_assets.core.artifacts import CODE_TYPES

Codes = NDArray[np.uint16] | NDArray[np.int32]
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")


class CodeTable:
    """The codes and samples of utterances: ``table[i]`` and ``sample(i)`` belong to utterance i.

    ``codes`` (codes,) are uint16 or int32, memory-mapped unless ``read``. ``bounds`` (samples + 1,)
    are int64: sample i has ``codes[bounds[i]:bounds[i + 1]]``. With ``raw`` the codes are int32
    without a header. Raises :class:`ArrayError` if a file is damaged, or if index and codes do not
    fit.
    """

    def __init__(
        self, codes: Path, index: Path, samples: Path, *, raw: bool = False, read: bool = False
    ) -> None:
        self._read = read
        self.codes: Codes = (
            map_raw(codes, "int32", read=read) if raw else map_npy(codes, *CODE_TYPES, read=read)
        )
        starts: Ints = map_npy(index, "int64", read=True)
        self.bounds: Ints = np.append(starts, len(self.codes))
        self.samples_path = samples
        if self.bounds[0] != 0:
            lost = f"the first sample starts at {self.bounds[0]}, not at 0"
            raise ArrayError(f"{index} does not describe {codes}: {lost}")
        backwards = np.flatnonzero(np.diff(self.bounds) < 0)
        if len(backwards):
            row = int(backwards[0])
            raise ArrayError(
                f"{index} does not describe {codes}: sample {row} would be "
                f"codes[{self.bounds[row]}:{self.bounds[row + 1]}] of {len(self.codes)}"
            )

    @classmethod
    def of_split(cls, folder: Path, split: Split, *, raw: bool = False) -> Self:
        """One split of a ``code_arrays`` artifact.

        With ``raw``: of arrays of the reference trainer, whose codes are int32 without a header.
        """
        return cls(
            folder / f"{split}_codes.npy",
            folder / f"{split}_codes_index.npy",
            folder / f"{split}_samples.jsonl",
            raw=raw,
        )

    @classmethod
    def of_shard(cls, folder: Path, number: int) -> Self:
        """One shard of a ``codec_shards`` artifact, read into memory."""
        name = f"shard-{number:05}"
        return cls(
            folder / f"{name}.codes.npy",
            folder / f"{name}.index.npy",
            folder / f"{name}.samples.jsonl",
            read=True,
        )

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Codes:
        """The codes of one sample, a view of the mapped file. Raises IndexError."""
        self._refuse_outside(row)
        return self.codes[self.bounds[row] : self.bounds[row + 1]]

    def _refuse_outside(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise IndexError(f"sample {row} of {len(self)}: {self.samples_path}")

    @cached_property
    def lines(self) -> tuple[Bytes, Ints]:
        """The samples file as bytes, and the bounds of its lines.

        Raises :class:`ArrayError` unless there is one line for each index entry.
        """
        text, bounds = map_lines(self.samples_path, read=self._read)
        self._refuse_count(len(bounds) - 1)
        return text, bounds

    def _refuse_count(self, samples: int) -> None:
        if samples != len(self):
            raise ArrayError(
                f"{self.samples_path} has {samples} samples, but its index {len(self)}; {REMEDY}"
            )

    def sample(self, row: int) -> dict[str, Any]:
        """The fields of one sample, parsed on each call."""
        self._refuse_outside(row)
        text, bounds = self.lines
        line = text[bounds[row] : bounds[row + 1]].tobytes()
        return parse_sample(line, self.samples_path, row + 1)

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """All samples in memory, about 2 kB each. See also :meth:`sample` and :meth:`columns`."""
        return [self.sample(row) for row in range(len(self))]

    def columns(self, *names: str) -> pl.DataFrame:
        """String fields of all samples, one row each; null where a sample has no such field.

        Raises :class:`ArrayError` if a line is not JSON.
        """
        _, bounds = self.lines
        schema = dict.fromkeys(names, pl.String)
        if len(bounds) == 1:
            return pl.DataFrame(schema=schema)
        try:
            found = pl.scan_ndjson(self.samples_path, schema=schema).collect(engine="streaming")
        except pl.exceptions.ComputeError as error:
            for row in range(len(self)):
                self.sample(row)  # raises at the line
            raise ArrayError(f"{self.samples_path} cannot be read: {error}; {REMEDY}") from None
        self._refuse_count(len(found))
        return found

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Codes]]:
        """Each sample with its codes."""
        return ((self.sample(row), self[row]) for row in range(len(self)))
