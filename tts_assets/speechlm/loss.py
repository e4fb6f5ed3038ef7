"""Losses over the vocabulary, computed in chunks of positions.

With 193,856 tokens the logits of 8,192 positions need 6 GB in float32, and their gradient the same.
A chunk of 1,024 positions needs an eighth of that.

Shapes: N positions, H hidden size, V tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 1024  # positions whose logits are in memory at once
ROWS = 256  # chunks are padded to a multiple: oneDNN compiles and keeps a kernel for each shape


class _SummedCrossEntropy(torch.autograd.Function):
    """Computes both gradients in the forward pass, while the logits of a chunk are in memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        hidden_learns, weight_learns = hidden.requires_grad, weight.requires_grad
        count = len(targets)
        hidden = F.pad(hidden, (0, 0, 0, -count % ROWS))
        targets = F.pad(targets, (0, len(hidden) - count))
        cast = weight.to(hidden.dtype)
        loss = hidden.new_zeros((), dtype=torch.float32)
        each = hidden.new_empty(len(targets), dtype=torch.float32)
        d_hidden = torch.empty_like(hidden) if hidden_learns else None
        d_weight = torch.zeros_like(weight) if weight_learns else None
        for start in range(0, len(targets), CHUNK):
            x, y = hidden[start : start + CHUNK], targets[start : start + CHUNK]
            real = count - start
            logits = (x @ cast.T).float()
            normalizer = logits.logsumexp(dim=-1, keepdim=True)
            losses = normalizer - logits.gather(1, y[:, None])
            loss += losses[:real].sum()
            each[start : start + CHUNK] = losses[:, 0]
            if d_hidden is None and d_weight is None:
                continue
            d_logits = logits.sub_(normalizer).exp_()
            d_logits[torch.arange(len(y), device=y.device), y] -= 1.0
            d_logits[real:] = 0.0
            d_cast = d_logits.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_cast, cast, out=d_hidden[start : start + CHUNK])
            if d_weight is not None:
                d_weight += d_cast.T @ x
        ctx.save_for_backward(d_hidden[:count] if d_hidden is not None else None, d_weight)
        each = each[:count]
        ctx.mark_non_differentiable(each)
        return loss, each

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * grads[0].to(d_hidden.dtype),
            None if d_weight is None else d_weight * grads[0],
            None,
        )


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy -log softmax(hidden weight^T)[target] in float32: its sum, and each (N,).

    ``hidden`` (N, H) is in the compute dtype, ``weight`` is (V, H), ``targets`` (N,). Only the sum
    has a gradient.
    """
    if not torch.is_grad_enabled():
        weight = weight.detach()  # otherwise the function would compute its gradient
    total, each = _SummedCrossEntropy.apply(hidden, weight, targets)
    return total, each


@torch.no_grad()
def likeliest(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token (N,) and the entropy (N,) in nats of softmax(hidden weight^T).

    ``hidden`` is (N, H), ``weight`` (V, H).
    """
    count = len(hidden)
    hidden = F.pad(hidden, (0, 0, 0, -count % ROWS))
    cast = weight.to(hidden.dtype)
    tokens = torch.empty(len(hidden), dtype=torch.int64, device=hidden.device)
    entropies = hidden.new_empty(len(hidden), dtype=torch.float32)
    for start in range(0, len(hidden), ROWS):
        logs = (hidden[start : start + ROWS] @ cast.T).float().log_softmax(dim=-1)
        tokens[start : start + ROWS] = logs.argmax(dim=-1)
        entropies[start : start + ROWS] = -(logs.exp() * logs).sum(dim=-1)
    return tokens[:count], entropies[:count]


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """log softmax(hidden weight^T / temperature)[target] of each position: (N,), float32.

    ``hidden`` is (N, H), ``weight`` (V, H), ``targets`` (N,). It is differentiable; the logits of a
    chunk are recomputed in the backward pass.
    """

    def chunk(x: Tensor, y: Tensor) -> Tensor:
        logits = (x @ weight.to(x.dtype).T).float() / temperature
        return logits.gather(1, y[:, None])[:, 0] - logits.logsumexp(dim=-1)

    parts = [
        checkpoint(chunk, hidden[i : i + CHUNK], targets[i : i + CHUNK], use_reentrant=False)
        for i in range(0, len(targets), CHUNK)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
