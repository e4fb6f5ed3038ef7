"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

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
                    if kind != "step":
                        yield kind, parameter, value

    def start_after(self, step: int) -> None:
        """Set the state after ``step`` steps with zero moments, into which a checkpoint is read."""
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    part.state[parameter] = _blank_state(part, parameter, step)


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
    muon = Muon(
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
