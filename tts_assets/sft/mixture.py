"""Several pools as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tts_assets.sft.config import SftRecipe
from tts_assets.sft.stream import Encoded, Group, Sample, SamplePool


class Mixture:
    """The items of all parts, numbered through; a sample is of one part."""

    def __init__(self, parts: Sequence[SamplePool]) -> None:
        self.parts = parts
        self.sources = [source for part in parts for source in part.sources]
        self.dropped = [item for part in parts for item in part.dropped]
        self.firsts = np.cumsum([0, *(len(part) for part in parts)])
        self.first_sources = np.cumsum([0, *(len(part.sources) for part in parts)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def _at(self, items: Group) -> tuple[int, SamplePool, Group]:
        """The part of these items, its number, and their numbers in it."""
        number = int(np.searchsorted(self.firsts, items[0], side="right")) - 1
        first = int(self.firsts[number])
        return number, self.parts[number], tuple(item - first for item in items)

    def length(self, items: Group) -> int:
        _, part, own = self._at(items)
        return part.length(own)

    def source(self, item: int) -> int:
        number, part, own = self._at((item,))
        return int(self.first_sources[number]) + part.source(own[0])

    def identity(self, item: int) -> str:
        _, part, own = self._at((item,))
        return part.identity(own[0])

    def encode(self, sample: Sample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        _, part, own = self._at(sample.items)
        return part.encode(sample._replace(items=own), code_dropout, seed)

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> list[Group]:
        return [
            tuple(item + int(first) for item in group)
            for part, first in zip(self.parts, self.firsts[:-1], strict=True)
            for group in part.groups(recipe, token_rate, epoch, random)
        ]
