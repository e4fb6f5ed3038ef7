"""The samples of an epoch as integers, the stream of batches, and the dataset interface.

A dataset (:class:`SampleDataset`) has numbered items. One or several items make a training sample.
:class:`Groups` has the items of many samples in two integer arrays; no sample is a Python object
before its batch is composed. :func:`plan_epoch` orders the samples of an epoch: 8 bytes a sample,
or 4 below 2^31 items. :class:`SampleStream` composes global batches from one epoch after another.
The samples of an epoch depend on the seed and the number of the epoch alone, never on the number of
ranks: a global batch is composed first and distributed afterwards (``packing.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from tts_assets.core.accounting import SetAside, nothing_usable
from tts_assets.sft.config import SftRecipe

Ints = NDArray[np.int64]
Items = NDArray[np.integer[Any]]  # numbers of items, (n,)
Group = tuple[int, ...]  # items of a dataset that make one sample
EPOCH, DROPOUT, VALIDATION = 1, 2, 4  # independent random streams of one seed; sampling.py has 3


class DataError(ValueError):
    """The data leaves nothing to train on. The message says how to fix it."""


class TrainingSample(NamedTuple):
    """The items of one sample, and its position in the stream: epoch and number in the epoch."""

    items: Group
    epoch: int
    number: int


@dataclass(frozen=True)
class Encoded:
    """One sample of n tokens.

    ``inputs`` and ``targets`` have the shape (n - 1,); the target of position i is token i + 1.
    ``first`` is the first position whose target is in the loss. ``turns`` are the ranges of such
    positions where not all from ``first`` on are. The positions from ``text[0]`` up to ``text[1]``
    predict the text of a prompt and its ``<|text_prompt_end|>``.
    """

    inputs: Ints
    targets: Ints
    first: int
    turns: tuple[tuple[int, int], ...] = ()
    text: tuple[int, int] = (0, 0)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The ranges of positions whose targets are in the loss."""
        return self.turns or ((self.first, len(self.inputs)),)


@dataclass(frozen=True)
class Groups:
    """The items of samples: sample i has ``items[bounds[i]:bounds[i + 1]]``.

    ``bounds`` (samples + 1,) None: every sample has one item.
    """

    items: Items
    bounds: Ints | None = None

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Groups:
        """The groups of a list."""
        sizes = np.array([0, *map(len, groups)], dtype=np.int64)
        items = np.fromiter((i for group in groups for i in group), np.int64, int(sizes.sum()))
        return cls(items, np.cumsum(sizes))

    @classmethod
    def join(cls, parts: Sequence[Groups]) -> Groups:
        """The samples of all parts, one part after another."""
        items = np.concatenate([part.items for part in parts])
        if all(part.bounds is None for part in parts):
            return cls(items)
        sizes = np.concatenate([part.sizes for part in parts])
        return cls(items, np.append(0, np.cumsum(sizes)))

    def __len__(self) -> int:
        return len(self.items) if self.bounds is None else len(self.bounds) - 1

    def __getitem__(self, sample: int) -> Group:
        if self.bounds is None:
            return (int(self.items[sample]),)
        own: list[int] = self.items[self.bounds[sample] : self.bounds[sample + 1]].tolist()
        return tuple(own)

    @property
    def sizes(self) -> Ints:
        """The number of items of each sample, (samples,)."""
        if self.bounds is None:
            return np.ones(len(self.items), dtype=np.int64)
        return np.diff(self.bounds)

    @property
    def firsts(self) -> Items:
        """The first item of each sample, (samples,)."""
        return self.items if self.bounds is None else self.items[self.bounds[:-1]]

    def sums(self, values: NDArray[np.integer[Any]]) -> Ints:
        """For each sample the sum of ``values`` (items of the dataset,) over its items."""
        if self.bounds is None:
            return values[self.items].astype(np.int64)
        return np.add.reduceat(values[self.items], self.bounds[:-1], dtype=np.int64)

    def take(self, order: Items) -> Groups:
        """The samples ``order`` (n,), in this order."""
        if self.bounds is None:
            return Groups(self.items[order])
        sizes = self.sizes[order]
        items = self.items[ranges(self.bounds[order], sizes)]
        return Groups(items, np.append(0, np.cumsum(sizes)))

    def shifted(self, offset: int) -> Groups:
        """The same samples where the numbers of items begin at ``offset``."""
        return Groups(self.items + offset if offset else self.items, self.bounds)


def ranges(firsts: Ints | int, counts: Ints) -> Ints:
    """The concatenation of ``arange(first, first + count)`` for each pair."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(firsts - before, counts)


class SampleDataset(Protocol):
    """One split of the data of a recipe, as numbered items: utterances, windows or texts.

    ``sources`` are the names of the sources of items: the speech of each corpus first, in the order
    of the recipe. ``dropped`` are items that cannot be trained on, mostly because of their length.
    """

    sources: list[str]
    dropped: list[SetAside]

    def __len__(self) -> int: ...

    def length(self, items: Group) -> int:
        """The number of tokens of the sample that these items make."""

    def sample_lengths(self, groups: Groups) -> Ints:
        """:meth:`length` of many samples, shape (samples,)."""

    def source(self, item: int) -> int:
        """The number of the item's source."""

    def item_sources(self) -> Items:
        """:meth:`source` of all items, shape (items,)."""

    def identity(self, item: int) -> str:
        """The name of an item in messages."""

    def encode(self, sample: TrainingSample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """The token ids of a sample. Up to ``code_dropout`` of its input codes are hidden."""

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> Groups:
        """The items of each sample of one epoch, in any order. ``token_rate``: codes a second."""


class EpochPlan(Sequence[TrainingSample]):
    """The samples of one epoch in training order. A sample is made when it is read."""

    def __init__(self, groups: Groups, epoch: int) -> None:
        self.ordered, self.epoch = groups, epoch

    def __len__(self) -> int:
        return len(self.ordered)

    @overload
    def __getitem__(self, number: int) -> TrainingSample: ...
    @overload
    def __getitem__(self, number: slice) -> list[TrainingSample]: ...
    def __getitem__(self, number: int | slice) -> TrainingSample | list[TrainingSample]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return TrainingSample(self.ordered[number], self.epoch, number)


def plan_epoch(
    dataset: SampleDataset, recipe: SftRecipe, token_rate: float, epoch: int
) -> EpochPlan:
    """All samples of one epoch, in training order."""
    random = np.random.default_rng([recipe.seed, EPOCH, epoch])
    groups = dataset.groups(recipe, token_rate, epoch, random)
    order = numbers(0, len(groups))
    random.shuffle(order)
    return EpochPlan(groups.take(order), epoch)


def numbers(first: int, end: int) -> Items:
    """``arange(first, end)`` of the smaller of int32 and int64 that holds ``end``."""
    return np.arange(first, end, dtype=np.int32 if end < 2**31 else np.int64)


def drawn_epochs(members: Items, weight: float, random: np.random.Generator) -> list[Items]:
    """``weight`` passes over all members: whole passes, and a random part for the fraction.

    The size of the random part is rounded at random: of 3 members with the weight 0.1, one is drawn
    in 3 of 10 epochs. Rounding down would never draw any.
    """
    passes = int(weight)
    wanted = (weight - passes) * len(members)
    extra = int(wanted + random.random()) if wanted else 0
    return [members] * passes + [random.permutation(members)[:extra].copy()]


def validation_samples(dataset: SampleDataset, most: int, seed: int) -> list[TrainingSample]:
    """The samples of every validation, one item each: all items, or ``most`` drawn with ``seed``.

    Half of ``most`` is divided equally among the sources, as far as they have so many items, and
    the rest in proportion to their items. Each source has at least one sample, so that its loss is
    measured. The samples do not depend on the number of ranks.
    """
    sources = dataset.item_sources()
    chosen = numbers(0, len(sources))
    if len(sources) > most:
        random = np.random.default_rng([seed, VALIDATION])
        shares = shares_of(np.bincount(sources, minlength=len(dataset.sources)), most)
        drawn = [
            random.permutation(np.flatnonzero(sources == source))[:share]
            for source, share in enumerate(shares.tolist())
        ]
        chosen = np.sort(np.concatenate(drawn))
    return [TrainingSample((item,), 0, item) for item in chosen.tolist()]


def shares_of(counts: Ints, most: int) -> Ints:
    """The samples of each source of ``counts`` items (sources,), together about ``most``."""
    least = np.minimum(counts, max(1, most // (2 * len(counts))))
    left = counts - least
    rest = max(0, most - int(least.sum()))
    return least + rest * left // max(1, int(left.sum()))


class SampleStream:
    """Endless batches of training samples. ``(epoch, offset)`` is the whole state."""

    def __init__(
        self,
        dataset: SampleDataset,
        recipe: SftRecipe,
        token_rate: float,
        epoch: int = 0,
        offset: int = 0,
    ) -> None:
        """Raises :class:`DataError` if ``dataset`` is empty."""
        if not len(dataset):
            why = "" if dataset.dropped else ": the training split of the recipe's data is empty"
            raise DataError(nothing_usable(f"no training sample is left{why}", dataset.dropped))
        self.dataset, self.recipe, self.token_rate = dataset, recipe, token_rate
        self.epoch, self.offset = epoch, offset

    @cached_property
    def plan(self) -> EpochPlan:
        """The samples of the current epoch, composed on first access."""
        return plan_epoch(self.dataset, self.recipe, self.token_rate, self.epoch)

    def count_steps(self) -> int:
        """The optimizer steps of the recipe. Epochs are counted in tokens of the first epoch."""
        if self.recipe.steps is not None:
            return self.recipe.steps
        tokens = int(self.dataset.sample_lengths(self.plan.ordered).sum())
        return max(1, round((self.recipe.epochs or 0) * tokens / self.recipe.batch_tokens))

    def batch(self) -> list[TrainingSample]:
        """The next global batch: up to ``batch_tokens`` tokens, at least one sample."""
        samples: list[TrainingSample] = []
        tokens = 0
        while True:
            if self.offset == len(self.plan):
                self.epoch, self.offset = self.epoch + 1, 0
                del self.plan
            sample = self.plan[self.offset]
            tokens += self.dataset.length(sample.items)
            if samples and tokens > self.recipe.batch_tokens:
                return samples
            samples.append(sample)
            self.offset += 1
