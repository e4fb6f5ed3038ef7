"""Frames: how the codes of several codebooks become one stream of integers.

A *frame* is the shortest stretch of audio with a whole number of codes of every codebook. Its codes
follow each other in the order of the codec's *pattern*, the codebook of each position of a frame.
Every position has integers of its own: code ``c`` at position ``k`` is the sum of the sizes of all
positions before ``k``, plus ``c``. SNAC with the pattern (0, 1, 2, 2, 1, 2, 2) and 4,096 codes a
codebook thus has 7 x 4,096 different codes, as in Orpheus. A codec with one codebook has frames of
one code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Frame:
    """The number of different codes at each position of a frame."""

    sizes: tuple[int, ...]

    def __len__(self) -> int:
        """The number of codes in a frame."""
        return len(self.sizes)

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """The first code of each position, then the number of all codes, (positions + 1,)."""
        return np.cumsum([0, *self.sizes])

    def positions(self, codes: ArrayLike) -> NDArray[np.int64]:
        """The position in a frame that each code belongs to; same shape."""
        return np.searchsorted(self.bounds[1:], np.asarray(codes), side="right")

    def first_misplaced(self, codes: NDArray[np.integer[Any]]) -> int | None:
        """The index of the first code that belongs to another position; None without one.

        ``codes`` (codes,) start with a frame.
        """
        if len(self) == 1:
            return None
        wrong = np.flatnonzero(self.positions(codes) != np.arange(len(codes)) % len(self))
        return int(wrong[0]) if len(wrong) else None

    def whole(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames at the start of ``codes`` (codes,) that are complete and in order."""
        first = self.first_misplaced(codes)
        valid = len(codes) if first is None else first
        return codes[: valid - valid % len(self)]

    def problem(self, codes: NDArray[np.integer[Any]]) -> str:
        """What is wrong with ``codes`` (codes,) as whole frames; empty if nothing is."""
        size = len(self)
        first = self.first_misplaced(codes)
        if first is not None:
            return (
                f"frame {first // size} is broken: its code {codes[first]} belongs to position "
                f"{int(self.positions(codes[first]))} of a frame, but is at position {first % size}"
            )
        if len(codes) % size:
            return f"the last frame is broken: it has {len(codes) % size} of {size} codes"
        return ""


def nested_pattern(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The pattern of a codec whose codebooks have different rates, from coarse to fine.

    ``strides`` are the lengths of a code of each codebook. A code is followed by those of the next
    codebook in its first part, and so on: (4, 2, 1) gives (0, 1, 2, 2, 1, 2, 2), Orpheus's order.
    """

    def below(level: int) -> tuple[int, ...]:
        if level + 1 == len(strides):
            return (level,)
        return (level, *(below(level + 1) * (strides[level] // strides[level + 1])))

    return below(0)
