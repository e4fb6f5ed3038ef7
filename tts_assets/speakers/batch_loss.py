"""The loss of a whole batch on every rank, from embeddings that the ranks exchange."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tts_assets.speakers.loss import Adversary, Ge2eLoss


class _Gathered(torch.autograd.Function):
    """The rows of all ranks; backward, the sum of the gradients that all ranks have for mine."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


class BatchLoss(nn.Module):
    """Crops of one rank to the loss of the whole batch: what DDP wraps.

    DDP takes the mean over ranks of gradients, each of which is that of the whole loss through
    this rank's rows, summed over all ranks' copies of it: together the whole gradient.
    """

    def __init__(self, model: nn.Module, ge2e: Ge2eLoss, adversary: Adversary | None) -> None:
        super().__init__()
        self.model, self.ge2e, self.adversary = model, ge2e, adversary

    def forward(
        self, crops: Tensor, speakers: int, classes: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """``classes``: of all rows, for the adversary."""
        embeddings = self.model(crops)
        if dist.is_initialized():
            embeddings = _Gathered.apply(embeddings)
        confound = None
        if self.adversary is not None and classes is not None:
            confound = self.adversary(embeddings, classes)
        return self.ge2e(embeddings.unflatten(0, (speakers, -1))), confound
