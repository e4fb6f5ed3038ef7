from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tts_assets.speechlm.ops import segment_attention

SEGMENTS = [37, 64, 1, 200]  # below, at and between the multiples that kernels are padded to


def attention(query: Tensor, key: Tensor, value: Tensor, segments: list[int]) -> Tensor:
    layer = torch.nn.Identity()
    return segment_attention(layer, query, key, value, None, segments=segments)[0]


def one_by_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's own attention, in float32, sample after sample."""
    parts = zip(*(x.float().split(SEGMENTS, dim=2) for x in (query, key, value)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        for q, k, v in parts
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_segments_do_not_attend_to_each_other(
    dtype: torch.dtype, tolerance: float, kv_heads: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    length = sum(SEGMENTS)
    inputs = [
        torch.randn(1, heads, length, 32, generator=generator).to(dtype).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]
    ours, theirs = attention(*inputs, SEGMENTS), one_by_one(*inputs)
    assert torch.allclose(ours.float(), theirs, atol=tolerance)
    weight = torch.randn(theirs.shape, generator=generator)
    gradients = torch.autograd.grad((ours.float() * weight).sum(), inputs)
    expected = torch.autograd.grad((theirs * weight).sum(), inputs)
    for got, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(got.float(), wanted.float(), atol=5 * tolerance)


def test_queries_and_keys_take_the_type_of_the_values() -> None:
    """Under autocast they come in float32; attention stays in bfloat16 all the same."""
    row = torch.randn(1, 4, sum(SEGMENTS), 32, generator=torch.Generator().manual_seed(0))
    mixed = attention(row, row, row.bfloat16(), SEGMENTS)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, attention(*[row.bfloat16()] * 3, SEGMENTS))


def test_segments_must_fill_the_row() -> None:
    row = torch.zeros(1, 2, 10, 8)
    with pytest.raises(ValueError, match=r"segments \[4, 5\] do not fill"):
        attention(row, row, row, [4, 5])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_one_kernel_equals_a_call_for_each_sample(dtype: torch.dtype, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(SEGMENTS), 64) for heads in (4, kv_heads, kv_heads)]
    inputs = [
        torch.randn(shape, generator=generator).to("cuda", dtype).requires_grad_()
        for shape in shapes
    ]
    ours, theirs = attention(*inputs, SEGMENTS), one_by_one(*inputs)
    assert torch.allclose(ours.float(), theirs, atol=0.03)
    weight = torch.randn(theirs.shape, generator=generator).cuda()
    gradients = torch.autograd.grad((ours.float() * weight).sum(), inputs)
    expected = torch.autograd.grad((theirs * weight).sum(), inputs)
    for got, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(got.float(), wanted.float(), atol=0.15)


@pytest.mark.gpu
def test_dropout_is_drawn_for_each_sample() -> None:
    row = torch.randn(1, 4, sum(SEGMENTS), 64, device="cuda", dtype=torch.bfloat16)
    layer = torch.nn.Identity()
    dropped = segment_attention(layer, row, row, row, None, segments=SEGMENTS, dropout=0.5)[0]
    assert not torch.allclose(dropped, attention(row, row, row, SEGMENTS), atol=0.1)
