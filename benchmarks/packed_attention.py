"""Attention over packed samples on a CPU: direct products against torch's fused kernel.

    OMP_NUM_THREADS=1 python benchmarks/packed_attention.py

times the forward and backward pass of a row of 4,096 tokens in bfloat16, by sample length and head
size, and prints a Markdown table. The thresholds of ``tts_assets/speechlm/ops.py`` follow
from it.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from tts_assets.speechlm.ops import segment_attention

TOKENS, WIDTH, REPEATS = 4096, 256, 5


def fused(query: Tensor, key: Tensor, value: Tensor, segments: list[int]) -> Tensor:
    parts = zip(*(x.split(segments, dim=2) for x in (query, key, value)), strict=True)
    outputs = [F.scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def direct(query: Tensor, key: Tensor, value: Tensor, segments: list[int]) -> Tensor:
    return segment_attention(torch.nn.Identity(), query, key, value, None, segments=segments)[0]


def milliseconds(length: int, heads: int, way: object) -> float:
    """The shortest time of ``REPEATS`` forward and backward passes."""
    shape = (1, heads, TOKENS, WIDTH // heads)
    inputs = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(1, TOKENS, heads, WIDTH // heads, dtype=torch.bfloat16)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        way(*inputs, [length] * (TOKENS // length)).backward(gradient)  # type: ignore[operator]
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {TOKENS} tokens, bf16\n")
    print("| sample length | heads x size | fused, ms | direct, ms |")
    print("|---|---|---|---|")
    for length in (128, 256, 512, 1024):
        for heads in (8, 4):
            times = [milliseconds(length, heads, way) for way in (fused, direct)]
            print(f"| {length} | {heads} x {WIDTH // heads} | {times[0]:.0f} | {times[1]:.0f} |")


if __name__ == "__main__":
    main()
