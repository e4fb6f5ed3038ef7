"""GE2E with one loop per index, as in the formulas of the paper (Wan et al. 2018). Slow."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def literal_ge2e(
    embeddings: Tensor, scale: Tensor, offset: Tensor, kind: Literal["softmax", "contrast"]
) -> Tensor:
    """Unit vectors [N, M, D] to the mean loss (equations 5 to 9 of Wan et al., 2018)."""
    speakers, utterances, _ = embeddings.shape
    losses = []
    for j in range(speakers):
        for i in range(utterances):
            similarities = []
            for k in range(speakers):
                if k == j:
                    others = [embeddings[j, m] for m in range(utterances) if m != i]
                    centroid = torch.stack(others).mean(dim=0)
                else:
                    centroid = embeddings[k].mean(dim=0)
                cosine = F.cosine_similarity(embeddings[j, i], centroid, dim=0)
                similarities.append(scale * cosine + offset)
            row = torch.stack(similarities)
            if kind == "softmax":
                losses.append(-row[j] + row.exp().sum().log())
            else:
                rest = torch.cat([row[:j], row[j + 1 :]])
                losses.append(1 - row[j].sigmoid() + rest.sigmoid().max())
    return torch.stack(losses).mean()
