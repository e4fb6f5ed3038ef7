"""Muon over several ranks: the same weights and momentum as on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.optim import Muon

from tts_assets.sft.optimizer import ShardedMuon, shares_of_ranks

SHAPES = ((24, 64), (24, 24), (64, 24), (24, 24), (16, 8))
STEPS = 3


def steps(kind: type[Muon]) -> dict[str, torch.Tensor]:
    """Weights and momentum of matrices after some steps with fixed gradients."""
    draw = torch.Generator().manual_seed(1)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    optimizer = kind(matrices, lr=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(STEPS):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=draw)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    buffers = [optimizer.state[matrix]["momentum_buffer"] for matrix in matrices]
    named = zip(range(len(SHAPES)), matrices, buffers, strict=True)
    return {f"{kind}{n}": x.detach() for n, m, b in named for kind, x in (("m", m), ("b", b))}


def on_one_rank(number: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/group", rank=number, world_size=ranks)
    torch.save(steps(ShardedMuon), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_sharded_muon_equals_muon(tmp_path: Path) -> None:
    ranks = 2
    mp.spawn(on_one_rank, (ranks, str(tmp_path)), nprocs=ranks)
    alone = steps(Muon)
    for number in range(ranks):
        found = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        assert all(torch.equal(value, alone[name]) for name, value in found.items())


def test_shares_are_balanced() -> None:
    matrices = [torch.empty(shape) for shape in SHAPES]
    shares = shares_of_ranks(matrices, 2)
    assert sorted(m.shape for share in shares for m in share) == sorted(m.shape for m in matrices)
    cost = [sum(m.numel() * min(m.shape) for m in share) for share in shares]
    assert max(cost) < 1.3 * min(cost)
    assert [len(share) for share in shares_of_ranks(matrices, 8)] == [1] * len(SHAPES)
