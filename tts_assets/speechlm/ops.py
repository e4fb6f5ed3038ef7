"""Attention over packed samples, and losses over a large vocabulary.

The attention is causal: several samples are in one row, each attends to itself only. There is no
padding between samples and no (tokens x tokens) mask. transformers calls :func:`segment_attention`
after ``model.set_attn_implementation(SEGMENTS)``. The lengths of the samples are the keyword
``segments`` of the model's forward pass. ``position_ids`` restart at each sample.

On GPUs in half precision all samples go through one kernel, torch's flash attention for sequences
of different lengths. It has no dropout, so with dropout the samples are computed one by one.

On CPUs in bfloat16 the two matrix products are called directly up to 1,024 tokens. Forward and
backward pass of 16 samples of 256 tokens take 32 ms, and 60 ms with torch's fused kernel (1 core
with AVX512_BF16, 4 heads of 64; ``benchmarks/packed_attention-2026-11-21.md``). Near 1,024 tokens
the fused kernel is faster, but oneDNN compiles and keeps a kernel for every length: on real samples
a process grew by 35 MB a step.

Losses over the vocabulary are computed in chunks of positions. With 193,856 tokens the logits of
8,192 positions need 6 GB in float32, and their gradient the same. A chunk of 1,024 positions needs
an eighth of that.

Shapes of attention: T tokens of a row, n of one sample, H query heads, KV key and value heads, D
features of a head. Shapes of losses: N positions, H hidden size, V tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

SEGMENTS = "segments"
DIRECT_LENGTH = 1024  # tokens; for longer samples the (H, n, n) scores need too much memory
LENGTH_MULTIPLE = 32  # oneDNN compiles a kernel for each new shape, which costs 0.75 ms and 0.6 MB
CHUNK = 1024  # positions whose logits are in memory at once
ROWS = 256  # chunks are padded to a multiple: oneDNN compiles and keeps a kernel for each shape


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: list[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each segment, to the last ``sliding_window`` tokens if it is set.

    ``query`` has the shape (1, H, T, D), ``key`` and ``value`` (1, KV, T, D), and
    ``sum(segments) == T``. Returns (1, T, H, D). ``attention_mask`` is None, because no mask is
    registered for this attention. Raises ValueError if the segments do not fill the row, and for
    capped scores (``softcap``) and attention sinks (``s_aux``), which are not implemented.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError("capped attention scores and attention sinks are not implemented")
    if sum(segments) != query.shape[2] or query.shape[0] != 1:
        raise ValueError(f"segments {segments} do not fill one row of {tuple(query.shape)}")
    scaling = scaling if scaling is not None else query.shape[-1] ** -0.5
    # Under autocast the rotary embedding leaves queries and keys in float32, values in bfloat16.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if _fits_varlen(query, dropout):
        return _attend_varlen(query, key, value, segments, scaling, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    parts = zip(
        query[0].split(segments, dim=1),
        _repeat(key[0], groups).split(segments, dim=1),
        _repeat(value[0], groups).split(segments, dim=1),
        strict=True,
    )
    outputs = [_attend(q, k, v, scaling, dropout, sliding_window) for q, k, v in parts]
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


def _fits_varlen(query: Tensor, dropout: float) -> bool:
    """Whether torch's flash attention supports the input: Ampere or later, D up to 256."""
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and dropout == 0.0
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: list[int],
    scaling: float,
    window: int | None = None,
) -> Tensor:
    """All samples in one kernel, (1, H or KV, T, D) -> (1, T, H, D)."""
    bounds, longest = _bounds(tuple(segments), query.device), max(segments)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    output = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # causal
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(output, Tensor)  # without the logsumexp
    return output[None]


@lru_cache(maxsize=2)  # all layers of a row use the same: one copy to the GPU
def _bounds(segments: tuple[int, ...], device: torch.device) -> Tensor:
    """The start of each sample and the end of the last one: (samples + 1,), int32."""
    return F.pad(torch.tensor(segments).cumsum(0), (1, 0)).to(device, torch.int32)


def _repeat(x: Tensor, groups: int) -> Tensor:
    """(KV, T, D) -> (KV * groups, T, D) for grouped-query attention."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=0)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float, window: int | None = None
) -> Tensor:
    """One sample: q, k, v (H, n, D) -> (H, n, D)."""
    if window is not None and window < q.shape[1]:
        band = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device)
        out = F.scaled_dot_product_attention(
            q[None],
            k[None],
            v[None],
            attn_mask=band.tril().triu(1 - window),
            scale=scaling,
            dropout_p=dropout,
        )
        return out[0]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[1] <= DIRECT_LENGTH:
        return _attend_directly(q, k, v, scaling, dropout)
    out = F.scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True, scale=scaling, dropout_p=dropout
    )
    return out[0]


def _attend_directly(q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float) -> Tensor:
    """As :func:`_attend`. Padding is at the end, where the causal mask hides it."""
    length = q.shape[1]
    if -length % LENGTH_MULTIPLE:
        q, k, v = (F.pad(x, (0, 0, 0, -length % LENGTH_MULTIPLE)) for x in (q, k, v))
    heads, padded, _ = q.shape
    mask = _causal_bias(q.dtype)[:padded, :padded].expand(heads, padded, padded)
    weights = torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scaling), dim=-1)
    return torch.bmm(F.dropout(weights, dropout) if dropout else weights, v)[:, :length]


@lru_cache(maxsize=2)
def _causal_bias(dtype: torch.dtype) -> Tensor:
    return torch.full((DIRECT_LENGTH, DIRECT_LENGTH), float("-inf"), dtype=dtype).triu_(1)


AttentionInterface.register(SEGMENTS, segment_attention)


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
