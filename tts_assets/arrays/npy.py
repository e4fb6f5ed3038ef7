"""One-dimensional ``.npy`` files: mapped strictly, and written as they grow."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

REMEDY = "delete the folder and materialize its asset again"
PIECES = 1024  # IOV_MAX of Linux: what one writev takes


class ArrayError(ValueError):
    """Files of codes that are damaged or do not belong together; the message names the file."""


def map_npy(path: Path, *dtypes: str, read: bool = False) -> NDArray[Any]:
    """Memory-map a one-dimensional ``.npy`` file of exactly its size and one of these types;
    ``read`` it instead if all of it is wanted at once, which is twice as fast."""
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
    return array.view(np.ndarray)  # the same map; slices of np.memmap objects cost 5x as much


def map_raw(path: Path, dtype: str, *, read: bool = False) -> NDArray[Any]:
    """The same for a file without a header."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArrayError(f"{path} is missing; {REMEDY}") from None
    if size % np.dtype(dtype).itemsize:
        raise ArrayError(f"{path} has {size} bytes, which is no row of {dtype}; {REMEDY}")
    if not size:  # nothing of it can be mapped
        return np.empty(0, dtype)
    if read:
        return np.frombuffer(map_whole(path), dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def map_whole(path: Path) -> mmap.mmap:
    """Map a file with all its pages at once: they need no faults later, and no copy."""
    with path.open("rb") as stream:
        flags = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
        return mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ)


class Pieces(NamedTuple):
    """What is to be written next to an unbuffered file."""

    stream: BinaryIO
    pieces: list[memoryview]


class NpyWriter:
    """A one-dimensional ``.npy`` file that grows.

    NumPy pads its headers so that the first axis can grow in place: the header is written again,
    with the final length, at the end.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.length = 0
        self._dtype = np.dtype(dtype)
        self._stream: BinaryIO = path.open("wb", buffering=0)
        self._write_header()

    def add(self, values: NDArray[Any]) -> None:
        """Append ``values``, which are of the file's type."""
        write_pieces(*self.take(values, np.array([[0, len(values)]])))

    def take(self, values: NDArray[Any], runs: NDArray[np.int64]) -> Pieces:
        """Count ``values[first:end]`` for each row of ``runs`` (n, 2) as written; the result is for
        :func:`write_pieces`, in any thread."""
        if values.dtype != self._dtype:
            raise TypeError(f"{self._stream.name} holds {self._dtype}, not {values.dtype}")
        self.length += int(np.diff(runs).sum())
        return Pieces(self._stream, pieces_of(values, runs))

    def close(self) -> None:
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
    """Write to an unbuffered file in few calls, without joining the pieces first."""
    for start in range(0, len(pieces), PIECES):
        rest = pieces[start : start + PIECES]
        while rest:
            written = os.writev(stream.fileno(), rest)
            # A disk that fills up takes less than it is given, and raises at the next call.
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][written:]
