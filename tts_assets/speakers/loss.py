"""The generalized end-to-end loss (GE2E; Wan et al., 2018, https://arxiv.org/abs/1710.10467).

The input are the embeddings (N speakers, M utterances, D) of one batch. The similarity of an
utterance and a speaker is ``scale * cosine + offset`` of its embedding and the speaker's centroid;
for its own speaker the utterance is left out of the centroid. One matrix product computes all
similarities, and the N x M own ones are then replaced. The loss is the mean over utterances; the
paper has the sum.

The ranks exchange their embeddings, so every rank computes the loss of the whole batch.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

SCALE, OFFSET = 10.0, -5.0  # initial values in the paper
LEAST_SCALE = 1e-6


class Ge2eLoss(nn.Module):
    """GE2E with learned scale and offset; ``kind``: the softmax or the contrast loss."""

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
        """Clamp the scale after a step. A clamp in ``forward`` would remove its gradient."""
        self.scale.clamp_(min=LEAST_SCALE)

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Unit vectors (N, M, D) to similarities (N, M, N) of utterances and speakers."""
        speakers, utterances, _ = embeddings.shape
        sums = embeddings.sum(dim=1, keepdim=True)
        centroids = F.normalize(sums[:, 0], dim=-1)
        others = F.normalize(sums - embeddings, dim=-1)  # a mean has the direction of its sum
        cosines = embeddings @ centroids.T
        own = (embeddings * others).sum(dim=-1)
        own_index = torch.arange(speakers, device=embeddings.device)[:, None, None]
        cosines = cosines.scatter(2, own_index.expand(-1, utterances, 1), own[..., None])
        return self.scale * cosines + self.offset

    def forward(self, embeddings: Tensor) -> Tensor:
        """Unit vectors (N, M, D) to the loss, a scalar."""
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
    """A classifier behind a gradient reversal layer (Ganin and Lempitsky, 2015).

    It learns to predict classes from embeddings, and the encoder learns to prevent that.
    """

    def __init__(self, embedding: int, hidden: int, classes: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.layers = nn.Sequential(
            nn.Linear(embedding, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """Embeddings (batch, D) and classes (batch,) to the cross-entropy, a scalar."""
        reversed_ = _Reversal.apply(embeddings, self.weight)
        return F.cross_entropy(self.layers(reversed_), classes)


class _Gathered(torch.autograd.Function):
    """Gathers the rows of all ranks; backward sums the ranks' gradients of this rank's rows."""

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
    """Computes the loss of the whole batch from the crops of one rank; the module that DDP wraps.

    A rank's gradient is that of the loss through its rows, summed over the copies of the loss on
    all ranks. The mean over ranks, which DDP takes, is the gradient of the whole batch.
    """

    def __init__(self, model: nn.Module, ge2e: Ge2eLoss, adversary: Adversary | None) -> None:
        super().__init__()
        self.model, self.ge2e, self.adversary = model, ge2e, adversary

    def forward(
        self, crops: Tensor, speakers: int, classes: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Crops (rows, frames, bands) to the GE2E loss and the adversary's loss, two scalars.

        ``classes``: of all rows of the batch, for the adversary.
        """
        embeddings = self.model(crops)
        if dist.is_initialized():
            embeddings = _Gathered.apply(embeddings)
        adversarial = None
        if self.adversary is not None and classes is not None:
            adversarial = self.adversary(embeddings, classes)
        return self.ge2e(embeddings.unflatten(0, (speakers, -1))), adversarial
