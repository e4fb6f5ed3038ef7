"""The generalized end-to-end loss (Wan et al., 2018, https://arxiv.org/abs/1710.10467).

Embeddings [N speakers, M utterances, D] of one batch. The similarity of an utterance to a speaker
is ``scale * cosine + offset`` of its embedding and the speaker's centroid, from which the
utterance itself is left out. Without loops: one product for all centroids, and the N x M own ones
put in their places. The loss is the mean over utterances (the paper has the sum).

The loss of a whole batch on every rank, from embeddings that the ranks exchange.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

SCALE, OFFSET = 10.0, -5.0  # where the paper starts
LEAST_SCALE = 1e-6


class Ge2eLoss(nn.Module):
    def __init__(
        self,
        kind: Literal["softmax", "contrast"] = "softmax",
        scale: float = SCALE,
        offset: float = OFFSET,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.tensor(scale))
        self.offset = nn.Parameter(torch.tensor(offset))

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Clamp the scale; after every step, so that its gradient is never lost to the clamp."""
        self.scale.clamp_(min=LEAST_SCALE)

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Unit vectors [N, M, D] to [N, M, N]: of every utterance to every speaker."""
        speakers, utterances, _ = embeddings.shape
        sums = embeddings.sum(dim=1, keepdim=True)
        centroids = F.normalize(sums[:, 0], dim=-1)
        others = F.normalize(sums - embeddings, dim=-1)  # a mean's direction is its sum's
        cosines = embeddings @ centroids.T
        own = (embeddings * others).sum(dim=-1)
        places = torch.arange(speakers, device=embeddings.device)[:, None, None]
        cosines = cosines.scatter(2, places.expand(-1, utterances, 1), own[..., None])
        return self.scale * cosines + self.offset

    def forward(self, embeddings: Tensor) -> Tensor:
        similarities = self.similarities(embeddings)
        speakers, utterances, _ = similarities.shape
        truth = torch.arange(speakers, device=embeddings.device).repeat_interleave(utterances)
        rows = similarities.flatten(0, 1)
        if self.kind == "softmax":
            return F.cross_entropy(rows, truth)
        own = rows.gather(1, truth[:, None])[:, 0]
        nearest = rows.scatter(1, truth[:, None], -torch.inf).amax(dim=1)
        return (1 - own.sigmoid() + nearest.sigmoid()).mean()


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


class Adversary(nn.Module):
    """Learns to tell classes from embeddings [batch, D], while the encoder, behind a reversed
    gradient, learns to give no way to (Ganin and Lempitsky, 2015)."""

    def __init__(self, embedding: int, hidden: int, classes: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.layers = nn.Sequential(
            nn.Linear(embedding, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        reversed_ = _Reversal.apply(embeddings, self.weight)
        return F.cross_entropy(self.layers(reversed_), classes)


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
