"""The endless stream of training samples, and what it draws them from.

What an epoch holds depends on the seed and its number alone, never on ranks: a global batch is
composed first, then split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tts_assets.accounting import SetAside
from tts_assets.sft.config import SftRecipe

Ints = NDArray[np.int64]
Group = tuple[int, ...]  # items of a pool that make one sample
EPOCH, DROPOUT = 1, 2  # streams of random numbers below one seed


class DataError(ValueError):
    """Data that leaves nothing to train on, or does not fit; the message names the remedy."""


class Sample(NamedTuple):
    """Items (indices into a pool) that make one sample, and its place in the stream."""

    items: Group
    epoch: int
    number: int


@dataclass(frozen=True)
class Encoded:
    """One sample as token ids, n of them.

    ``inputs`` and ``targets`` (n - 1,): the target of position i is token i + 1. ``first`` is the
    first position whose target counts; ``turns`` are the ranges of positions whose targets count,
    where not all from ``first`` on do. The positions from ``text[0]`` up to ``text[1]`` predict a
    prompt's text and its ``<|text_prompt_end|>``.
    """

    inputs: Ints
    targets: Ints
    first: int
    turns: tuple[tuple[int, int], ...] = ()
    text: tuple[int, int] = (0, 0)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The ranges of positions whose targets count."""
        return self.turns or ((self.first, len(self.inputs)),)


class SamplePool(Protocol):
    """One split of all that a recipe trains on, as numbered items: utterances, windows, texts.

    ``sources`` names where items are from: the speech of each corpus first, in the recipe's order.
    ``dropped`` are those that cannot be trained on, most of them since they do not fit.
    """

    sources: list[str]
    dropped: list[SetAside]

    def __len__(self) -> int: ...

    def length(self, items: Group) -> int:
        """Tokens of the sample that these items make."""

    def source(self, item: int) -> int:
        """The number of its source."""

    def identity(self, item: int) -> str:
        """What a person finds it by."""

    def encode(self, sample: Sample, code_dropout: float = 0.0, seed: int = 0) -> Encoded: ...

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> list[Group]:
        """What the samples of one epoch are made of, in any order."""


def too_long(identity: str, tokens: int) -> SetAside:
    """An item that does not fit. It is left out whole: speech cut short would teach the model to
    stop early."""
    return SetAside(identity, "longer than max_seq_len", f"{tokens} tokens")


def plan_epoch(pool: SamplePool, recipe: SftRecipe, token_rate: float, epoch: int) -> list[Sample]:
    """All samples of one epoch, in training order."""
    random = np.random.default_rng([recipe.seed, EPOCH, epoch])
    groups = pool.groups(recipe, token_rate, epoch, random)
    order = random.permutation(len(groups))
    return [Sample(groups[i], epoch, number) for number, i in enumerate(order)]


def drawn_epochs(members: Ints, weight: float, random: np.random.Generator) -> list[Ints]:
    """``weight`` epochs of all members: whole passes, and a random part for the fraction.

    Of 3 members with a weight of 0.1 one is drawn in 3 of 10 epochs: rounded, it were none.
    """
    passes = int(weight)
    wanted = (weight - passes) * len(members)
    extra = int(wanted + random.random()) if wanted else 0
    return [members] * passes + [random.permutation(members)[:extra]]


class SampleStream:
    """Endless training samples; ``(epoch, offset)`` is its whole state."""

    def __init__(
        self,
        pool: SamplePool,
        recipe: SftRecipe,
        token_rate: float,
        epoch: int = 0,
        offset: int = 0,
    ) -> None:
        if not len(pool):
            raise DataError("no training sample is left; see set_aside.jsonl for the reasons")
        self.pool, self.recipe, self.token_rate = pool, recipe, token_rate
        self.epoch, self.offset = epoch, offset

    @cached_property
    def plan(self) -> list[Sample]:
        """The samples of the present epoch, made when the first is asked for."""
        return plan_epoch(self.pool, self.recipe, self.token_rate, self.epoch)

    def batch(self) -> list[Sample]:
        """The next samples, up to ``batch_tokens`` tokens (one sample at least)."""
        samples: list[Sample] = []
        tokens = 0
        while True:
            if self.offset == len(self.plan):
                self.epoch, self.offset = self.epoch + 1, 0
                del self.plan
            sample = self.plan[self.offset]
            tokens += self.pool.length(sample.items)
            if samples and tokens > self.recipe.batch_tokens:
                return samples
            samples.append(sample)
            self.offset += 1
