"""Collectives of torch.distributed that also work without a process group (one rank)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def summed(values: list[float | Tensor], device: torch.device) -> list[float]:
    """The sum of each value over all ranks, in float64. Shape (values,)."""
    tensor = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if dist.is_initialized():
        tensor = tensor.to(device)
        dist.all_reduce(tensor)
    return tensor.tolist()


def from_main(value: int, device: torch.device) -> int:
    """Broadcast the value of rank 0."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, device=device)
    dist.broadcast(tensor, src=0)
    return int(tensor)


def wait_for_all() -> None:
    """A barrier over all ranks."""
    if dist.is_initialized():
        dist.barrier()
