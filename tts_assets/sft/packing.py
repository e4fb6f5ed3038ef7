"""Packed rows: samples end to end in one row, without cutting any sample.

:class:`RankSharding` distributes a global batch over the ranks and packs the samples of one rank.

Shapes: T tokens of a row, N of them with a target in the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_assets.sft.dataset import Encoded, SampleDataset, TrainingSample

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


def ranges(firsts: NDArray[np.int64] | int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The concatenation of ``arange(first, first + count)`` for each pair."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(firsts - before, counts)


def split_over(samples: Sequence[T], size: Callable[[T], int], parts: int) -> list[list[T]]:
    """Split samples over ``parts`` ranks: the longest first, each to the rank with the least.

    The result is deterministic: every rank computes the samples of all ranks without messages.
    """
    by_rank: list[list[T]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for sample in sorted(samples, key=size, reverse=True):
        least = loads.index(min(loads))
        by_rank[least].append(sample)
        loads[least] += size(sample)
    return by_rank


def first_fit(samples: Sequence[T], size: Callable[[T], int], capacity: int) -> list[list[T]]:
    """Rows of at most ``capacity`` tokens: each sample goes to the first row with room for it."""
    rows: list[list[T]] = []
    room: list[int] = []
    for sample in samples:
        need = size(sample)
        row = next((i for i, free in enumerate(room) if free >= need), None)
        if row is None:
            rows.append([])
            room.append(capacity)
            row = len(rows) - 1
        rows[row].append(sample)
        room[row] -= need
    return rows


_size = itemgetter(0)  # of a pair (length, sample)


class RankSharding:
    """Packs the samples of one rank. Every rank computes the rows of all ranks from the batch.

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

    def rows(
        self, dataset: SampleDataset, batch: Sequence[TrainingSample], code_dropout: float = 0.0
    ) -> Iterator[Packed]:
        """The packed rows of this rank for a global ``batch``."""
        sized = [(dataset.length(sample.items), sample) for sample in batch]
        by_rank = split_over(sized, _size, self.world_size)
        rows_by_rank = [first_fit(samples, _size, self.micro_tokens) for samples in by_rank]
        own = rows_by_rank[self.rank]
        for row in own:
            encoded = [dataset.encode(sample, code_dropout, self.seed) for _, sample in row]
            sources = [dataset.source(sample.items[0]) for _, sample in row]
            yield pack(encoded, sources, self.text)
        # A rank without samples takes part in the exchange of gradients with zeros.
        wanted = max(map(len, rows_by_rank)) if self.lockstep else 1
        for _ in range(wanted - len(own)):
            _, shortest = min(sized, key=_size)
            yield pack([dataset.encode(shortest)]).without_targets()
