"""Texts that are trained on beside speech: conversations, whose answers count, and plain ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from tts_assets.accounting import SetAside
from tts_assets.arrays.arrays import ArrayError, Split
from tts_assets.arrays.lines import Bytes, map_lines
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.stream import Encoded, Group, Ints, Sample, drawn_epochs, too_long
from tts_assets.speechlm.chats import ChatIds


class TextFile:
    """One split of a source: its ids, and the samples they were made from."""

    def __init__(self, name: str, ids: Path, samples: Path, split: Split) -> None:
        self.name, self.samples = name, samples / f"{split}_samples.jsonl"
        self.chats = ChatIds(ids, split)
        if len(self._lines[1]) - 1 != len(self.chats.rows):
            raise ArrayError(f"{ids} was not made from {self.samples}; delete the folder {ids}")

    @cached_property
    def _lines(self) -> tuple[Bytes, Ints]:
        return map_lines(self.samples)

    def identity(self, row: int) -> str:
        text, bounds = self._lines
        sample = json.loads(text[bounds[row] : bounds[row + 1]].tobytes())
        return f"{self.name}: {sample['id']}"

    @property
    def refused(self) -> list[SetAside]:
        """Samples that the chat template cannot express."""
        found = self.chats.refused
        return [SetAside(f"{self.name}: {x.what}", x.reason, x.detail) for x in found]


class TextPool:
    """All samples of one split that fit into ``max_seq_len``."""

    def __init__(self, files: Mapping[str, TextFile], max_seq_len: int) -> None:
        self.sources = list(files)
        self.files = list(files.values())
        lengths = [file.chats.rows.lengths for file in self.files]
        fits = [np.flatnonzero((own > 0) & (own <= max_seq_len)) for own in lengths]
        self.file_of = np.repeat(np.arange(len(fits)), [len(rows) for rows in fits])
        self.row_of: Ints = np.concatenate([np.empty(0, dtype=np.int64), *fits])
        self.dropped: list[SetAside] = []
        for file, own in zip(self.files, lengths, strict=True):
            self.dropped += file.refused
            for row in np.flatnonzero(own > max_seq_len).tolist():
                self.dropped.append(too_long(file.identity(row), int(own[row])))

    def __len__(self) -> int:
        return len(self.row_of)

    def _at(self, item: int) -> tuple[TextFile, int]:
        return self.files[self.file_of[item]], int(self.row_of[item])

    def length(self, items: Group) -> int:
        file, row = self._at(items[0])
        return int(file.chats.rows.lengths[row])

    def source(self, item: int) -> int:
        return int(self.file_of[item])

    def identity(self, item: int) -> str:
        file, row = self._at(item)
        return file.identity(row)

    def encode(self, sample: Sample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """Ids of a sample; there are no codes to drop."""
        file, row = self._at(sample.items[0])
        ids = file.chats.rows[row].astype(np.int64)
        counts = file.chats.learnt(row)[1:]
        edges = np.flatnonzero(np.diff(counts, prepend=0, append=0)).tolist()
        turns = tuple(zip(edges[::2], edges[1::2], strict=True))
        return Encoded(ids[:-1], ids[1:], turns[0][0], turns)

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> list[Group]:
        """Single samples, by the weights of their sources."""
        parts = [np.empty(0, dtype=np.int64)]
        for number, name in enumerate(self.sources):
            members = np.flatnonzero(self.file_of == number)
            parts += drawn_epochs(members, recipe.texts[name], random)
        return [(item,) for item in np.concatenate(parts).tolist()]
