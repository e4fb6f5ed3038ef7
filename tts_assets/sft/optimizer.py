"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from tts_assets.core.training import rank, world_size
from tts_assets.sft.config import OptimizerConfig

BETAS = (0.9, 0.95)  # of AdamW, as in GPT-3 and Llama
DECAY_SHARE = 0.2  # of all steps, the decay phase of the schedule wsd
ParameterGroup = dict[str, Any]


class Optimizers:
    """One or two torch optimizers that step together at one learning rate."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.parts: list[Optimizer] = _optimizers(model, config)

    def step(self, lr: float) -> float:
        """Clip, update, and clear the gradients. Returns the gradient norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)
        return float(norm)

    def moments(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name of the moment, parameter, moment) of all running averages of gradients."""
        for part in self.parts:
            for parameter, state in part.state.items():
                for kind, value in state.items():
                    if kind not in ("step", "qmap1", "qmap2"):  # constants of bitsandbytes
                        yield kind, parameter, value

    def start_after(self, step: int) -> None:
        """Set the state after ``step`` steps with zero moments, into which a checkpoint is read."""
        for part in self.parts:
            for i, group in enumerate(part.param_groups):
                for j, parameter in enumerate(group["params"]):
                    if self.config.name == "adamw_8bit":
                        part.init_state(group, parameter, i, j)  # type: ignore[attr-defined]
                        part.state[parameter]["step"] = step
                    else:
                        part.state[parameter] = _blank_state(part, parameter, step)


class ShardedMuon(Muon):
    """Muon (Jordan et al. 2024) whose matrices are shared among the ranks of DDP.

    Orthogonalizing a matrix (m, n) with m <= n takes 5 iterations of about 6 m m n FLOPs, and a
    step of a small model on a CPU spends a third of its time there. Each rank therefore updates
    its share of the matrices and broadcasts them. The momentum is cheap: every rank keeps all of
    it, so that a checkpoint is the same on any number of ranks.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all matrices. The gradients must be the same on all ranks; some are cleared."""
        if world_size() == 1:
            super().step(closure)
            return
        (group,) = self.param_groups
        shares = shares_of_ranks(group["params"], world_size())
        for number, share in enumerate(shares):
            if number != rank():
                for parameter in share:
                    self._keep_momentum(parameter, group["momentum"])
                    parameter.grad = None  # torch's step leaves these matrices alone
        super().step()
        for number, share in enumerate(shares):
            flat = _flatten_dense_tensors(share)
            dist.broadcast(flat, number)
            for parameter, new in zip(share, _unflatten_dense_tensors(flat, share), strict=True):
                parameter.copy_(new)

    def _keep_momentum(self, parameter: Tensor, momentum: float) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)


def shares_of_ranks(matrices: list[Tensor], ranks: int) -> list[list[Tensor]]:
    """The matrices that each rank updates: the next most expensive one goes to the least busy."""
    shares: list[list[Tensor]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for matrix in sorted(matrices, key=lambda m: -m.numel() * min(m.shape)):
        least = load.index(min(load))
        shares[least].append(matrix)
        load[least] += matrix.numel() * min(matrix.shape)
    return [share for share in shares if share]


def _blank_state(part: Optimizer, parameter: Tensor, step: int) -> dict[str, Tensor]:
    if isinstance(part, Muon):
        return {"momentum_buffer": torch.zeros_like(parameter)}
    count = torch.tensor(float(step), dtype=torch.float32, device=parameter.device)
    averages = {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
    return {"step": count, **averages}


def _optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    decayed, plain = parameter_groups(model, config)
    if config.name == "adamw":
        return [adamw([decayed, plain], config)]
    if config.name == "adamw_8bit":
        from bitsandbytes.optim import PagedAdamW8bit

        return [PagedAdamW8bit([decayed, plain], lr=config.lr, betas=BETAS)]
    muon = ShardedMuon(
        decayed["params"],
        lr=config.lr,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw([plain], config)]


def adamw(groups: list[ParameterGroup], config: OptimizerConfig) -> AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019) of these parameter groups."""
    return AdamW(groups, lr=config.lr, betas=BETAS, fused=True)


def parameter_groups(
    model: nn.Module, config: OptimizerConfig
) -> tuple[ParameterGroup, ParameterGroup]:
    """Two groups: the matrices of the layers, with weight decay, and all else, without."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    vectors = [p for _, p in named if p.ndim < 2]
    # Embeddings and the output matrix are lookup tables. Their rows get gradients rarely, and decay
    # would pull the rows of rare tokens to zero.
    tables = [p for name, p in named if p.ndim >= 2 and _is_table(name)]
    matrices = [p for name, p in named if p.ndim >= 2 and not _is_table(name)]
    plain = {"params": [*tables, *vectors], "weight_decay": 0.0}
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    return decayed, plain


def _is_table(name: str) -> bool:
    return "embed_tokens" in name or "lm_head" in name


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step 0 … ``steps - 1``: linear warm-up, then the schedule."""
    warmup = math.ceil(config.warmup_share * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    last = config.final_share
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        decay = max(1, round(DECAY_SHARE * steps))
        progress = max(0.0, (step + 1 - (steps - decay)) / decay)
        return config.lr * (1 - (1 - last) * progress)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return config.lr * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress)))
