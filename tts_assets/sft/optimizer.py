"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from tts_assets.sft.config import OptimizerConfig


class Optimizers:
    """One or two torch optimizers that step together at one learning rate."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.parts: list[Optimizer] = _parts(model, config)

    def step(self, lr: float) -> float:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _parts(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    vectors = [p for _, p in named if p.ndim < 2]
    # Embeddings and the output matrix are lookup tables: their rows get gradients rarely, and
    # decay would pull rare tokens to zero.
    tables = [p for name, p in named if p.ndim >= 2 and _is_table(name)]
    matrices = [p for name, p in named if p.ndim >= 2 and not _is_table(name)]
    plain = {"params": [*tables, *vectors], "weight_decay": 0.0}
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    if config.name == "adamw":
        return [AdamW([decayed, plain], lr=config.lr, betas=config.betas, fused=True)]
    muon = Muon(
        matrices,
        lr=config.lr,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, AdamW([plain], lr=config.lr, betas=config.betas, fused=True)]


def _is_table(name: str) -> bool:
    return "embed_tokens" in name or "lm_head" in name


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of step 0 … ``steps - 1``: linear warm-up, then the schedule."""
    warmup = math.ceil(config.warmup_share * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    last = config.final_share
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        decay = max(1, round(config.decay_share * steps))
        progress = max(0.0, (step + 1 - (steps - decay)) / decay)
        return config.lr * (1 - (1 - last) * progress)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return config.lr * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress)))
