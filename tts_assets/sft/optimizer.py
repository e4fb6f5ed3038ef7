"""Optimizers and learning-rate schedules of a recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from tts_assets.core.config import ConfigError
from tts_assets.core.training import rank, world_size
from tts_assets.sft.config import OptimizerConfig

BETAS = (0.9, 0.95)  # of AdamW, as in GPT-3 and Llama
DECAY_SHARE = 0.2  # of all steps, the decay phase of the schedule wsd
ParameterGroup = dict[str, Any]


class Optimizers:
    """One to three torch optimizers that step together at one learning rate."""

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, codes: CodeRows | None = None
    ) -> None:
        self.config = config
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.parts: list[Optimizer] = _optimizers(model, config)
        if codes is not None:
            tables: list[Tensor] = [p for name, p in model.named_parameters() if _is_table(name)]
            self.parts.append(SharedRows(tables, codes, config.lr))

    def step(self, lr: float) -> float:
        """Clip, update, and clear the gradients. Returns the gradient norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
        for part in self.parts:
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


@dataclass(frozen=True)
class CodeRows:
    """The rows (C,) of a table that belong to the codes of an FSQ codec, and its levels."""

    rows: Tensor
    levels: tuple[int, ...]

    def features(self) -> Tensor:
        """What codes have in common: (C, F), 1 / sqrt(count) where code c has feature f.

        Code c is the number with the digits (Mentzer et al. 2023) d_k = c // (L_1 … L_k-1) % L_k,
        one for each dimension of a latent. Its features are its digits, and the pairs of them.
        """
        places = [math.prod(self.levels[:k]) for k in range(len(self.levels))]
        codes = torch.arange(math.prod(self.levels))
        digits = [codes // place % size for place, size in zip(places, self.levels, strict=True)]
        kinds = [[k] for k in range(len(digits))], [*combinations(range(len(digits)), 2)]
        columns = []
        for kind in kinds:
            for dimensions in kind:
                value = torch.zeros_like(codes)
                for k in dimensions:
                    value = value * self.levels[k] + digits[k]
                size = math.prod(self.levels[k] for k in dimensions)
                columns.append(nn.functional.one_hot(value, size).float() / len(kind) ** 0.5)
        return torch.cat(columns, dim=1)


def code_rows(codec: Path | None, code_to_id: Iterable[int]) -> CodeRows:
    """The rows of the codes of the codec in a folder.

    Raises :class:`ConfigError` if its codes are not those of one finite scalar quantizer.
    """
    if codec is None:
        raise ConfigError("optimizer.share_codes needs the codec: give codec_folder")
    rows = torch.as_tensor(list(code_to_id))
    levels = tuple(json.loads((codec / "config.json").read_text()).get("quantization_levels", ()))
    if math.prod(levels) != len(rows) or len(levels) < 2:
        raise ConfigError(
            f"optimizer.share_codes needs a codec with one finite scalar quantizer, such as "
            f"X-Codec-2 or NeuCodec: {codec} has none, leave share_codes out"
        )
    return CodeRows(rows, levels)


class SharedRows(Optimizer):
    """Trains the embeddings of codes that have levels in common together.

    With W = R + B D, where B (C, F) are the features of the codes, AdamW trains R (C, H) and this
    optimizer D (F, H), whose gradient is Bᵀ dL/dW. Only the sum W is kept, so that the model stays
    as it is. A code that is rare in the data, or that only another speaker has, then starts from
    what its neighbours have learned. The update is Adam's, without decay.
    """

    def __init__(self, tables: Sequence[Tensor], codes: CodeRows, lr: float) -> None:
        super().__init__(tables, {"lr": lr})
        device = tables[0].device
        self.rows, self.features = codes.rows.to(device), codes.features().to(device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the tables that have a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, group["lr"])

    def _update(self, table: Tensor, lr: float) -> None:
        state = self.state[table]
        if not state:
            state.update(self.blank_state(table, 0))
        gradient = self.features.T @ table.grad[self.rows].float()  # type: ignore[index]
        state["step"] += 1
        mean, square = state["shared_avg"], state["shared_avg_sq"]
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        first, second = (1 - beta ** float(state["step"]) for beta in BETAS)
        step = (mean / first) / ((square / second).sqrt() + 1e-8)
        table[self.rows] -= lr * (self.features @ step)

    def blank_state(self, table: Tensor, step: int) -> dict[str, Tensor]:
        """The state after ``step`` steps with zero moments (F, H)."""
        shape = (self.features.shape[1], table.shape[1])
        moments = {kind: table.new_zeros(shape) for kind in ("shared_avg", "shared_avg_sq")}
        return {"step": torch.tensor(float(step)), **moments}


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
    if isinstance(part, SharedRows):
        return part.blank_state(parameter, step)
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
