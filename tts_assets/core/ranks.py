"""What ranks tell each other. With one rank there is no process group, and nothing is sent."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def summed(values: list[float | Tensor], device: torch.device) -> list[float]:
    """Each value's sum over all ranks, in float64."""
    tensor = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if dist.is_initialized():
        tensor = tensor.to(device)
        dist.all_reduce(tensor)
    return tensor.tolist()


def from_main(value: int, device: torch.device) -> int:
    """The value of rank 0."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, device=device)
    dist.broadcast(tensor, src=0)
    return int(tensor)


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
