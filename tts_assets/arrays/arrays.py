"""Reading codes and samples: one table of utterances, the same in shards and in merged arrays.

A table is three files that belong together: all codes one after another (``.npy``, uint16), the
int64 offset at which each sample's codes start, and a JSON line a sample. Codes stay on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint16]
Ints = NDArray[np.int64]
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
REMEDY = "delete the folder and materialize its asset again"


class ArrayError(ValueError):
    """Files of codes that are damaged or do not belong together; the message names the file."""


class CodeTable:
    """The codes and samples of some utterances; sample ``i`` has ``table[i]`` and ``samples[i]``.

    ``codes`` uint16 (codes,), memory-mapped; ``bounds`` int64 (samples + 1,): sample ``i`` is
    ``codes[bounds[i]:bounds[i + 1]]``. Raises :class:`ArrayError` if a file is damaged, or index
    and codes do not fit together.
    """

    def __init__(self, codes: Path, index: Path, samples: Path) -> None:
        self.codes: Codes = map_npy(codes, np.uint16)
        starts: Ints = np.array(map_npy(index, np.int64))
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
    def of_split(cls, folder: Path, split: Split) -> Self:
        """One half of a ``code_arrays`` artifact."""
        return cls(
            folder / f"{split}_codes.npy",
            folder / f"{split}_codes_index.npy",
            folder / f"{split}_samples.jsonl",
        )

    @classmethod
    def of_shard(cls, folder: Path, number: int) -> Self:
        """One shard of a ``codec_shards`` artifact."""
        name = f"shard-{number:05}"
        return cls(
            folder / f"{name}.codes.npy",
            folder / f"{name}.index.npy",
            folder / f"{name}.samples.jsonl",
        )

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Codes:
        """The codes of one sample, a view into the mapped file."""
        if not 0 <= row < len(self):
            raise IndexError(f"sample {row} of {len(self)}: {self.samples_path}")
        return self.codes[self.bounds[row] : self.bounds[row + 1]]

    def lines(self) -> list[bytes]:
        """The samples as they are on disk, without line ends; one an index entry."""
        try:
            *lines, rest = self.samples_path.read_bytes().split(b"\n")
        except OSError as error:
            raise ArrayError(f"{self.samples_path}: {error.strerror}; {REMEDY}") from None
        if rest:
            raise ArrayError(f"{self.samples_path} ends within a line; {REMEDY}")
        if len(lines) != len(self):
            raise ArrayError(
                f"{self.samples_path} has {len(lines)} samples, but its index {len(self)}; {REMEDY}"
            )
        return lines

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The samples, parsed, in the order of the index."""
        return [
            parse_sample(line, self.samples_path, number)
            for number, line in enumerate(self.lines(), start=1)
        ]

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Codes]]:
        """Each sample with its codes."""
        return ((sample, self[row]) for row, sample in enumerate(self.samples))


def parse_sample(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line of a samples file; ``path`` and ``number`` are for the error message."""
    try:
        sample = json.loads(line)
    except ValueError as error:  # neither JSON nor UTF-8
        raise ArrayError(f"{path}, line {number} is not JSON ({error}); {REMEDY}") from None
    if not isinstance(sample, dict) or not isinstance(sample.get("id"), str):
        raise ArrayError(f"{path}, line {number} is not a sample with an id; {REMEDY}")
    return sample


def map_npy(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """Memory-map a one-dimensional ``.npy`` file of exactly this type and size."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArrayError(f"{path} is missing; {REMEDY}") from None
    except (ValueError, EOFError) as error:
        raise ArrayError(f"{path} is damaged or not a .npy file ({error}); {REMEDY}") from None
    if array.dtype != dtype or array.ndim != 1:
        found = f"{array.dtype} of shape {array.shape}"
        raise ArrayError(f"{path} holds {found}, not a row of {np.dtype(dtype)}; {REMEDY}")
    if array.offset + array.nbytes != size:
        raise ArrayError(f"{path} is longer than its header says; {REMEDY}")
    return array.view(np.ndarray)  # the same map; slices of np.memmap objects cost 5x as much
