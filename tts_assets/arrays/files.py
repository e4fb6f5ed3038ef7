"""Files of arrays: one-dimensional ``.npy`` files, and JSON Lines files of samples.

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
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

REMEDY = "delete the folder and materialize its asset again"
PIECES = 1024  # IOV_MAX of Linux: the most buffers of one writev call


class ArrayError(ValueError):
    """Files that are damaged or do not fit together. The message names the file."""


def map_npy(path: Path, *dtypes: str, read: bool = False) -> NDArray[Any]:
    """Memory-map a one-dimensional ``.npy`` file of one of these types.

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
    """Memory-map a file without a header, as :func:`map_npy`."""
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
        """Append ``values``. Raises TypeError if they are not of the file's type."""
        write_pieces(*self.take(values, np.array([[0, len(values)]])))

    def take(self, values: NDArray[Any], runs: NDArray[np.int64]) -> Pieces:
        """Count ``values[first:end]`` for each row of ``runs`` (n, 2) as written.

        Returns the buffers for :func:`write_pieces`, which may run in another thread.
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


Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
PIECE = 1 << 20  # bytes looked at at once: a mask of them stays in the cache
NEWLINE = ord("\n")
# A line as this project writes it. The id is read without parsing if it is plain ASCII and the
# first key: then no escape can mean another one.
PLAIN_ID = re.compile(rb'(\{"id": ?")([ !#-\[\]-~]+)"')


def map_lines(path: Path, *, read: bool = False) -> tuple[Bytes, Ints]:
    """A text file, mapped into memory or ``read``, and the bounds of its lines, int64
    (lines + 1,)."""
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
