"""A rank's share of a global batch, as packed rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter

from tts_assets.program import Run
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.packing import Packed, first_fit, pack, split_over
from tts_assets.sft.stream import Sample, SamplePool

_size = itemgetter(0)  # of a sample with its length


class Share:
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
        self, pool: SamplePool, batch: Sequence[Sample], code_dropout: float = 0.0
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
