"""Reading and writing of arrays: tables of codes and samples, and their files.

A table (:class:`CodeTable`) has three files: all codes one after another (``.npy``, uint16, or
int32 for codebooks larger than 65,536), the offset of the codes of each sample (``.npy``, int64),
and one JSON line a sample. Shards and merged arrays have the same tables. Codes and lines stay on
disk.

``.npy`` files are memory-mapped with strict checks (:func:`map_npy`) and written incrementally
(:class:`NpyWriter`). Of sample files, the bounds of lines and the ids are found without parsing
most lines (:func:`map_lines`, :func:`read_ids`). This takes a tenth of the 1 to 2 s that parsing
400,000 lines takes.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.core.artifacts import CODE_TYPES, ArtifactError

Codes = NDArray[np.uint16] | NDArray[np.int32]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
REMEDY = "delete the folder and materialize its asset again"
PIECES = 1024  # IOV_MAX of Linux: the most buffers of one writev call
PIECE = 1 << 20  # bytes that are searched at once: their mask stays in the CPU cache
NEWLINE = ord("\n")
# A line as this project writes it. The id is read without parsing if it is plain ASCII and the
# first key: then no escape can mean another one.
PLAIN_ID = re.compile(rb'(\{"id": ?")([ !#-\[\]-~]+)"')


class ArrayError(ArtifactError):
    """Files that are damaged or do not fit together. The message names the file."""


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


def map_npy(path: Path, *dtypes: str, read: bool = False) -> NDArray[Any]:
    """Memory-map a ``.npy`` file of shape (n,) and one of these types.

    With ``read`` all pages are mapped at once, which is twice as fast if all of it is used. Raises
    :class:`ArrayError` if the file is missing or damaged, or has another type or size.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArrayError(f"{path} is missing; {REMEDY}") from None
    except (ValueError, EOFError) as error:
        raise ArrayError(f"{path} is damaged or not a .npy file ({error}); {REMEDY}") from None
    if array.dtype not in map(np.dtype, dtypes) or array.ndim != 1:
        found = f"{array.dtype} of shape {array.shape}"
        raise ArrayError(f"{path} holds {found}, not a row of {' or '.join(dtypes)}; {REMEDY}")
    if array.offset + array.nbytes != size:
        raise ArrayError(f"{path} is longer than its header says; {REMEDY}")
    if read:
        return np.frombuffer(map_whole(path), array.dtype, offset=array.offset)
    return array.view(
        np.ndarray
    )  # the same memory; slices of np.memmap objects cost 5 times as much


def map_raw(path: Path, dtype: str, *, read: bool = False) -> NDArray[Any]:
    """Memory-map a file without a header, (n,) of ``dtype``; as :func:`map_npy`.

    Raises :class:`ArrayError` if the file is missing or has an incomplete element.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArrayError(f"{path} is missing; {REMEDY}") from None
    if size % np.dtype(dtype).itemsize:
        raise ArrayError(f"{path} has {size} bytes, which is no row of {dtype}; {REMEDY}")
    if not size:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    if read:
        return np.frombuffer(map_whole(path), dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def map_whole(path: Path) -> mmap.mmap:
    """Map a file with all its pages at once, which saves page faults and a copy."""
    with path.open("rb") as stream:
        flags = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
        return mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ)


class Pieces(NamedTuple):
    """Buffers to be written next to an unbuffered file."""

    stream: BinaryIO
    pieces: list[memoryview]


class NpyWriter:
    """A one-dimensional ``.npy`` file that is written incrementally.

    NumPy pads its headers, so that the first axis can grow in place. :meth:`close` writes the
    header again with the final length.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.length = 0
        self._dtype = np.dtype(dtype)
        self._stream: BinaryIO = path.open("wb", buffering=0)
        self._write_header()

    def add(self, values: NDArray[Any]) -> None:
        """Append ``values`` (n,). Raises TypeError if they are not of the file's type."""
        write_pieces(*self.take(values, np.array([[0, len(values)]])))

    def take(self, values: NDArray[Any], runs: NDArray[np.int64]) -> Pieces:
        """Count ``values[first:end]`` for each row of ``runs`` (n, 2) as written.

        Returns the buffers for :func:`write_pieces`, which may run in another thread. Raises
        TypeError if ``values`` are not of the file's type.
        """
        if values.dtype != self._dtype:
            raise TypeError(f"{self._stream.name} holds {self._dtype}, not {values.dtype}")
        self.length += int(np.diff(runs).sum())
        return Pieces(self._stream, pieces_of(values, runs))

    def close(self) -> None:
        """Write the final header and close the file."""
        with self._stream:
            self._stream.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        description = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)


def pieces_of(values: NDArray[Any], runs: NDArray[np.int64]) -> list[memoryview]:
    """The bytes of ``values[first:end]`` for each row of ``runs`` (n, 2), without a copy."""
    if not len(values):
        return []
    data = np.ascontiguousarray(values).data.cast("B")
    return [data[first:end] for first, end in (runs * values.itemsize).tolist()]


def write_pieces(stream: BinaryIO, pieces: list[memoryview]) -> None:
    """Write the pieces to an unbuffered file in few calls, without concatenating them."""
    for start in range(0, len(pieces), PIECES):
        rest = pieces[start : start + PIECES]
        while rest:
            written = os.writev(stream.fileno(), rest)
            # A disk that fills up takes less than it is given, and raises at the next call.
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][written:]


def map_lines(path: Path, *, read: bool = False) -> tuple[Bytes, Ints]:
    """A text file, mapped into memory or ``read``, and the bounds of its lines, int64
    (lines + 1,).

    Raises :class:`ArrayError` if the file is missing or its last line has no newline.
    """
    text: Bytes = map_raw(path, "uint8", read=read)
    bounds = line_bounds(text)
    if bounds[-1] != len(text):
        raise ArrayError(f"{path} ends within a line; {REMEDY}")
    return text, bounds


def count_lines(path: Path) -> int:
    """The number of lines of a text file, read in pieces of constant size."""
    text = map_raw(path, "uint8")
    pieces = (text[at : at + PIECE] for at in range(0, len(text), PIECE))
    return sum(int(np.count_nonzero(piece == NEWLINE)) for piece in pieces)


def line_bounds(text: Bytes) -> Ints:
    """The bounds of lines: line i with its newline is ``text[bounds[i]:bounds[i + 1]]``.

    A rest without a newline is not a line.
    """
    ends = [_after_newlines(text[at : at + PIECE]) + at for at in range(0, len(text), PIECE)]
    return np.concatenate([np.zeros(1, dtype=np.int64), *ends])


def _after_newlines(piece: Bytes) -> Ints:
    """The positions after newlines. Eight bytes are tested at once, which is 3 times as fast."""
    marks = piece == NEWLINE
    whole = len(marks) // 8 * 8
    eights = np.flatnonzero(marks[:whole].view(np.uint64) != 0)
    row, column = np.nonzero(marks[:whole].reshape(-1, 8)[eights])
    rest = np.flatnonzero(marks[whole:]) + whole
    return np.concatenate([eights[row] * 8 + column, rest]) + 1


def read_ids(text: Bytes, bounds: Ints, path: Path) -> list[bytes]:
    """The id of every line in UTF-8. ``path`` is for the message of :class:`ArrayError`."""
    if len(bounds) < 2:
        return []
    first = PLAIN_ID.match(text[: bounds[1]].data)
    ids = None if first is None else _ids_like(first, text, bounds[:-1])
    if ids is None:
        return [_id_of(text[a:b].tobytes(), path, n) for n, (a, b) in _numbered(bounds)]
    return ids


def _ids_like(first: re.Match[bytes], text: Bytes, starts: Ints) -> list[bytes] | None:
    """The ids, if all lines begin like the first line and have ids of the same length."""
    begin, end = first.span(2)
    width = end + 1
    if int(starts[-1]) + width > len(text):
        return None
    # Overlapping strings of ``width`` bytes, one at each position of the text, without a copy.
    windows = np.ndarray((len(text) - width + 1,), f"S{width}", text.data, strides=(1,))
    heads = windows[starts].view(np.uint8).reshape(len(starts), width)
    ids = np.ascontiguousarray(heads[:, begin:end])
    frame = np.frombuffer(first[0], np.uint8)
    framed = (heads[:, :begin] == frame[:begin]).all() and (heads[:, end] == frame[end]).all()
    plain = (ids >= ord(" ")) & (ids <= ord("~")) & (ids != ord('"')) & (ids != ord("\\"))
    if not (framed and plain.all()):
        return None
    names: list[bytes] = ids.view(f"S{end - begin}")[:, 0].tolist()
    return names


def _id_of(line: bytes, path: Path, number: int) -> bytes:
    plain = PLAIN_ID.match(line)
    if plain:
        return plain[2]
    identity: str = parse_sample(line, path, number)["id"]
    return identity.encode()


def _numbered(bounds: Ints) -> Iterator[tuple[int, tuple[int, int]]]:
    return enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True), start=1)


def parse_sample(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line of a samples file. Raises :class:`ArrayError` with ``path`` and ``number``."""
    try:
        sample = json.loads(line)
    except ValueError as error:  # neither JSON nor UTF-8
        raise ArrayError(f"{path}, line {number} is not JSON ({error}); {REMEDY}") from None
    if not isinstance(sample, dict) or not isinstance(sample.get("id"), str):
        raise ArrayError(f"{path}, line {number} is not a sample with an id; {REMEDY}")
    return sample
