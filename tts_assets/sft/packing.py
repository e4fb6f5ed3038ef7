"""Packed rows: samples end to end in one row, without cutting any sample.

:class:`RankSharding` distributes a global batch over the ranks and packs the samples of one rank.
:class:`BatchLoader` makes the next batch ahead of its step.

Shapes: T tokens of a row, N of them with a target in the loss.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tts_assets.sft.epochs import (
    Encoded,
    SampleDataset,
    SampleStream,
    TrainingSample,
    ranges,
)

T = TypeVar("T")
# Rows are padded to a multiple of this. oneDNN compiles a bfloat16 kernel for each new shape and
# keeps it: without padding a rank of the embedded recipe grows by 7 MB a step.
ROW_MULTIPLE = 64


@dataclass(frozen=True)
class Packed:
    """One row of samples, with padding at its end.

    ``input_ids`` and ``position_ids`` have the shape (1, T); positions restart at each sample.
    ``segments`` are the lengths of the samples and of the padding, if any. ``where`` (N,) are the
    positions whose targets are in the loss, ``targets`` (N,) the token ids they predict, and
    ``sources`` (N,) the number of the source of each. ``tokens`` counts the tokens of the samples
    without padding.

    The last ``text_targets`` of the N targets are text, the others speech. The loss of a text
    target is multiplied by ``text_scale``.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: list[int]
    where: Tensor
    targets: Tensor
    sources: Tensor
    tokens: int
    text_targets: int = 0
    text_scale: float = 0.0

    def to(self, device: torch.device, text_scale: float = 0.0) -> Packed:
        """The row on ``device``, with the scale of its text targets."""
        tensors = ("input_ids", "position_ids", "where", "targets", "sources")
        moved = {name: getattr(self, name).to(device) for name in tensors}
        return replace(self, **moved, text_scale=text_scale)

    def without_targets(self) -> Packed:
        """The row without targets: its loss and gradients are zero."""
        nothing = {name: getattr(self, name)[:0] for name in ("where", "targets", "sources")}
        return replace(self, **nothing, tokens=0, text_targets=0)


def pack(
    samples: Sequence[Encoded], sources: Sequence[int] | None = None, text: bool = False
) -> Packed:
    """Pack samples into one row.

    ``sources`` are the numbers of their sources, 0 by default. With ``text`` the tokens of their
    texts are targets, too.
    """
    segments = [len(sample.inputs) for sample in samples]
    tokens = sum(segments)
    padding = -tokens % ROW_MULTIPLE
    inputs = [*(sample.inputs for sample in samples), np.zeros(padding, dtype=np.int64)]
    starts = np.cumsum([0, *segments[:-1]])
    # Ranges of positions with targets, as (sample, first, end): those of speech, then of text.
    spans = [(i, *span) for i, sample in enumerate(samples) for span in sample.spans]
    speech_spans = len(spans)
    if text:
        spans += [(i, *sample.text) for i, sample in enumerate(samples)]
    number, first, end = np.array(spans, dtype=np.int64).T
    where = ranges(starts[number] + first, end - first)
    numbers = np.asarray(sources or [0] * len(samples))[number]
    if padding:
        segments = [*segments, padding]
    return Packed(
        input_ids=torch.from_numpy(np.concatenate(inputs))[None],
        position_ids=torch.from_numpy(ranges(0, np.array(segments)))[None],
        segments=segments,
        where=torch.from_numpy(where),
        targets=torch.from_numpy(np.concatenate([s.targets for s in samples])[where]),
        sources=torch.from_numpy(np.repeat(numbers, end - first)),
        tokens=tokens,
        text_targets=int((end - first)[speech_spans:].sum()),
    )


def split_over(samples: Sequence[T], size: Callable[[T], int], parts: int) -> list[list[T]]:
    """Split samples over ``parts`` ranks: the longest first, each to the rank with the least.

    The result is deterministic: every rank computes the samples of all ranks without messages. Of
    ranks with equal sums the first one is chosen. n samples take O(n log n).
    """
    by_rank: list[list[T]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for sample in sorted(samples, key=size, reverse=True):
        load, least = loads[0]
        by_rank[least].append(sample)
        heapq.heapreplace(loads, (load + size(sample), least))
    return by_rank


def first_fit(samples: Sequence[T], size: Callable[[T], int], capacity: int) -> list[list[T]]:
    """Rows of at most ``capacity`` tokens: each sample goes to the first row with room for it.

    No sample is longer than ``capacity``. ``room`` is a binary tree over the rows. A node has the
    largest room of its two children, so the first row with room is found from the root: n samples
    take O(n log n).
    """
    leaves = 1 << max(0, len(samples) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    rows: list[list[T]] = [[] for _ in samples]
    for sample in samples:
        need, node = size(sample), 1
        while node < leaves:
            node *= 2
            if room[node] < need:
                node += 1
        rows[node - leaves].append(sample)
        room[node] -= need
        while node := node // 2:
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [row for row in rows if row]


_size = itemgetter(0)  # of a pair (length, sample)


class RankRows(NamedTuple):
    """The samples of each row of one rank.

    ``blanks`` more rows have no targets: the sample ``shortest`` of the batch without its targets.
    A rank without samples takes part in the exchange of gradients with them.
    """

    rows: list[list[TrainingSample]]
    blanks: int
    shortest: TrainingSample


class RankSharding:
    """Packs the samples of one rank. Every rank distributes the whole batch in the same way.

    ``micro_tokens`` limits a row. ``seed`` is that of code dropout. With ``text`` the tokens of
    texts are targets, too. With ``lockstep`` all ranks get the same number of rows; the additional
    rows have no targets.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        micro_tokens: int,
        seed: int,
        text: bool = False,
        lockstep: bool = False,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.micro_tokens, self.seed = micro_tokens, seed
        self.text, self.lockstep = text, lockstep

    def share(self, dataset: SampleDataset, batch: Sequence[TrainingSample]) -> RankRows:
        """The samples of the rows of this rank for a global ``batch``."""
        sized = [(dataset.length(sample.items), sample) for sample in batch]
        by_rank = split_over(sized, _size, self.world_size)
        # Only in lockstep does a rank need the number of rows of the others.
        wanted = 1
        if self.lockstep:
            wanted = max(len(first_fit(own, _size, self.micro_tokens)) for own in by_rank)
        own = first_fit(by_rank[self.rank], _size, self.micro_tokens)
        rows = [[sample for _, sample in row] for row in own]
        _, shortest = min(sized, key=_size)
        return RankRows(rows, max(0, wanted - len(rows)), shortest)

    def packed(
        self, dataset: SampleDataset, share: RankRows, code_dropout: float = 0.0
    ) -> Iterator[Packed]:
        """The packed rows of a share."""
        for row in share.rows:
            encoded = [dataset.encode(sample, code_dropout, self.seed) for sample in row]
            sources = [dataset.source(sample.items[0]) for sample in row]
            yield pack(encoded, sources, self.text)
        for _ in range(share.blanks):
            yield pack([dataset.encode(share.shortest)]).without_targets()

    def rows(
        self, dataset: SampleDataset, batch: Sequence[TrainingSample], code_dropout: float = 0.0
    ) -> Iterator[Packed]:
        """The packed rows of this rank for a global ``batch``."""
        return self.packed(dataset, self.share(dataset, batch), code_dropout)


class Batch(NamedTuple):
    """A global batch, the rows of this rank, and the state of the stream after the batch."""

    samples: list[TrainingSample]
    rows: list[Packed]
    epoch: int
    offset: int


class BatchLoader:
    """Makes the rows of the next batch in a thread while the present one is computed."""

    def __init__(
        self, stream: SampleStream, sharding: RankSharding, code_dropout: float = 0.0
    ) -> None:
        self.stream, self.sharding, self.code_dropout = stream, sharding, code_dropout
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: Future[Batch] | None = None

    def next(self) -> Batch:
        """The next batch. Raises the error that its making has raised."""
        batch = (self._next or self._thread.submit(self._make)).result()
        self._next = self._thread.submit(self._make)
        return batch

    def _make(self) -> Batch:
        samples = self.stream.batch()
        rows = list(self.sharding.rows(self.stream.dataset, samples, self.code_dropout))
        return Batch(samples, rows, self.stream.epoch, self.stream.offset)
