"""Samples into packed rows: end to end, and no sample is cut.

T tokens of a row, N of them with a target that counts.

A rank's share of a global batch, as packed rows.
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

from tts_assets.core.program import Run
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.dataset import Encoded, SampleDataset, TrainingSample

T = TypeVar("T")
# Rows end in padding up to a multiple of this: oneDNN compiles its bfloat16 kernels for each new
# shape and keeps them, which cost a rank of the embedded recipe 7 MB a step.
ROW_MULTIPLE = 64


@dataclass(frozen=True)
class Packed:
    """Samples end to end in one row, and padding.

    ``input_ids`` and ``position_ids`` (1, T), positions restart at each sample; ``segments`` are
    the samples' lengths, and that of the padding if there is any; ``where`` (N,) the positions
    that count, ``targets`` (N,) what they predict and ``sources`` (N,) the number of the corpus
    that each is from. ``tokens`` counts the samples' own.

    The last ``text_targets`` of the N are of text, the others of speech; a text target's loss
    counts ``text_scale`` times that of a speech target.
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
        """The row on a device, its text targets scaled."""
        tensors = ("input_ids", "position_ids", "where", "targets", "sources")
        moved = {name: getattr(self, name).to(device) for name in tensors}
        return replace(self, **moved, text_scale=text_scale)

    def without_targets(self) -> Packed:
        """The same row with nothing to predict: loss and gradients are zero."""
        nothing = {name: getattr(self, name)[:0] for name in ("where", "targets", "sources")}
        return replace(self, **nothing, tokens=0, text_targets=0)


def pack(
    samples: Sequence[Encoded], sources: Sequence[int] | None = None, text: bool = False
) -> Packed:
    """Put samples end to end; ``sources`` are the numbers of their sources, 0 if not given.
    ``text``: their texts are targets, too."""
    segments = [len(sample.inputs) for sample in samples]
    tokens = sum(segments)
    padding = -tokens % ROW_MULTIPLE
    inputs = [*(sample.inputs for sample in samples), np.zeros(padding, dtype=np.int64)]
    starts = np.cumsum([0, *segments[:-1]])
    # What counts: (sample, first position, end), then of texts.
    counted = [(i, *span) for i, sample in enumerate(samples) for span in sample.spans]
    spoken = len(counted)
    if text:
        counted += [(i, *sample.text) for i, sample in enumerate(samples)]
    number, first, end = np.array(counted, dtype=np.int64).T
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
        text_targets=int((end - first)[spoken:].sum()),
    )


def ranges(firsts: NDArray[np.int64] | int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``arange(first, first + count)`` of each, end to end."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(firsts - before, counts)


def split_over(samples: Sequence[T], size: Callable[[T], int], parts: int) -> list[list[T]]:
    """Share samples between ``parts`` ranks: the longest first, each to the least loaded.

    Deterministic, so that every rank knows all shares without a message.
    """
    shares: list[list[T]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for sample in sorted(samples, key=size, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(sample)
        loads[least] += size(sample)
    return shares


def first_fit(samples: Sequence[T], size: Callable[[T], int], capacity: int) -> list[list[T]]:
    """Rows of at most ``capacity``: each sample goes to the first row with room for it."""
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


_size = itemgetter(0)  # of a sample with its length


class RankSharding:
    """Makes the rows of one rank. Every rank knows all shares, since they follow from the batch.

    ``lockstep``: all ranks get equally many rows, some of them without targets.
    """

    def __init__(self, run: Run, recipe: SftRecipe, lockstep: bool) -> None:
        self.rank, self.world_size = run.rank, run.world_size
        self.micro_tokens = recipe.micro_tokens
        self.seed = recipe.seed
        self.text = recipe.text_loss_weight > 0
        self.lockstep = lockstep

    def rows(
        self, pool: SampleDataset, batch: Sequence[TrainingSample], code_dropout: float = 0.0
    ) -> Iterator[Packed]:
        sized = [(pool.length(sample.items), sample) for sample in batch]
        shares = split_over(sized, _size, self.world_size)
        groups = [first_fit(share, _size, self.micro_tokens) for share in shares]
        mine = groups[self.rank]
        for group in mine:
            encoded = [pool.encode(sample, code_dropout, self.seed) for _, sample in group]
            sources = [pool.source(sample.items[0]) for _, sample in group]
            yield pack(encoded, sources, self.text)
        # A rank without samples takes part in the exchange of gradients with zeros.
        wanted = max(map(len, groups)) if self.lockstep else 1
        for _ in range(wanted - len(mine)):
            _, shortest = min(sized, key=_size)
            yield pack([pool.encode(shortest)]).without_targets()
