"""The texts of a split as token ids, made once: a row a sample, in the order of the arrays.

In a folder: ``{split}_{text,later,description}_ids.npy`` (int32, all rows one after another) and
``…_index.npy`` (int64, where each row starts). ``later`` is the text with a space before it, as it
continues another: tokenizers join the space to the next word. ``description`` is D of the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tts_assets.arrays.arrays import ArrayError, CodeTable, Split
from tts_assets.arrays.npy import NpyWriter, map_npy
from tts_assets.speechlm.prompts import PromptFormat, describe

Ints = NDArray[np.int64]
ROWS = 20_000  # texts tokenized at once: all cores are busy, and memory stays flat
NAMES = ("text", "later", "description")
DESCRIBED = ("voice_description", "emotion", "style")  # fields of a sample that make a description


class Rows:
    """Rows of different length: ``rows[i]`` is ``ids[bounds[i]:bounds[i + 1]]``, int32."""

    def __init__(self, ids: NDArray[np.int32], starts: Ints) -> None:
        self.ids = ids
        self.bounds: Ints = np.append(starts, len(ids))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.ids[self.bounds[row] : self.bounds[row + 1]]

    @cached_property
    def lengths(self) -> Ints:
        return np.diff(self.bounds)


@dataclass(frozen=True)
class TextIds:
    """Text, text as a continuation, and description (often empty) of every sample."""

    text: Rows
    later: Rows
    description: Rows


def text_ids(table: CodeTable, prompts: PromptFormat) -> TextIds:
    """The texts of a table, tokenized now and held in memory."""
    pieces = list(_tokenized(table, prompts))
    columns = ([row for piece in pieces for row in piece[i]] for i in range(len(NAMES)))
    return TextIds(*(Rows(*joined(rows)) for rows in columns))


def write_text_ids(table: CodeTable, prompts: PromptFormat, folder: Path, split: Split) -> TextIds:
    """Tokenize the texts of a split into ``folder``, at the memory of a piece; then open them."""
    writers = {
        name: (
            NpyWriter(folder / f"{split}_{name}_ids.npy", "int32"),
            NpyWriter(folder / f"{split}_{name}_index.npy", "int64"),
        )
        for name in NAMES
    }
    for piece in _tokenized(table, prompts):
        for (ids, index), rows in zip(writers.values(), piece, strict=True):
            values, starts = joined(rows)
            index.add(starts + ids.length)
            ids.add(values)
    for ids, index in writers.values():
        ids.close()
        index.close()
    return read_text_ids(table, folder, split)


def read_text_ids(table: CodeTable, folder: Path, split: Split) -> TextIds:
    """What :func:`write_text_ids` wrote, memory-mapped. Raises :class:`ArrayError` if it is of
    other samples."""
    found = []
    for name in NAMES:
        ids = map_npy(folder / f"{split}_{name}_ids.npy", "int32")
        starts = map_npy(folder / f"{split}_{name}_index.npy", "int64", read=True)
        if len(starts) != len(table):
            raise ArrayError(
                f"{folder} has texts of {len(starts)} {split} samples, but {table.samples_path} "
                f"holds {len(table)}; materialize token_arrays again"
            )
        found.append(Rows(ids, starts))
    return TextIds(*found)


def joined(rows: list[Ints]) -> tuple[NDArray[np.int32], Ints]:
    """Rows one after another, and where each starts."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.concatenate([np.empty(0, dtype=np.int64), *rows]).astype(np.int32)
    return ids, np.cumsum(lengths) - lengths


def _tokenized(table: CodeTable, prompts: PromptFormat) -> Iterator[list[list[Ints]]]:
    """Text, continuation and description of up to ROWS samples at a time."""
    columns = table.columns("transcript", *DESCRIBED).fill_null("")
    for piece in columns.iter_slices(ROWS):
        texts = piece["transcript"].to_list()
        described = [describe(*tags) for tags in piece.select(DESCRIBED).rows()]
        yield [
            prompts.text_batch(texts),
            prompts.text_batch([" " + text for text in texts]),
            prompts.text_batch(described),
        ]
