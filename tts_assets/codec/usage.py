"""How much of a codebook is in use: entropy, perplexity, and the codes that never occur."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn


class CodeUsage(nn.Module):
    """Counts of the codes since the last report; a part of checkpoints, so that a resumed run
    reports what an uninterrupted one does."""

    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebook_size, dtype=torch.int64))

    def add(self, codes: Tensor) -> None:
        """Codes of any shape."""
        self.counts += codes.flatten().long().bincount(minlength=len(self.counts))

    def gather(self, ranks: int, is_main: bool) -> None:
        """Rank 0 takes over what the others have counted."""
        if ranks > 1:
            dist.all_reduce(self.counts)
            if not is_main:
                self.counts.zero_()

    def figures(self, ranks: int) -> dict[str, float]:
        """:func:`usage` of the counts of all ranks."""
        counts = self.counts.clone()
        if ranks > 1:
            dist.all_reduce(counts)
        return usage(counts.cpu().numpy())


def usage(counts: NDArray[np.integer[Any]]) -> dict[str, float]:
    """``entropy`` in bits a code, ``perplexity`` (2 to its power: as many codes, used alike, would
    say as much), ``codes_used`` and ``dead_codes``. ``counts``: (codebook size,)."""
    seen = counts[counts > 0]
    shares = seen / seen.sum()
    entropy = float(-(shares * np.log2(shares)).sum())
    return {
        "entropy": round(entropy, 6),
        "perplexity": round(2**entropy, 4),
        "codes_used": len(seen),
        "dead_codes": len(counts) - len(seen),
    }


def count_codes(clips: Iterable[NDArray[np.integer[Any]]], size: int) -> NDArray[np.int64]:
    """How often each code of a codebook occurs in clips, (size,)."""
    counts = np.zeros(size, dtype=np.int64)
    for codes in clips:
        counts += np.bincount(codes, minlength=size)
    return counts
