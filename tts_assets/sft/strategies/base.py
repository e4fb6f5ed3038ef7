"""What the trainer asks of a strategy, and the strategies that use torch's own optimizers.

Weights and moments have one name under every strategy, ``model.<parameter>`` and
``optimizer.<moment>.<parameter>``: a checkpoint that one wrote is read by the others, on any number
of ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tts_assets.program import Run
from tts_assets.sft.model import SpeechLoss
from tts_assets.sft.optimizer import Optimizers
from tts_assets.sft.packing import Packed
from tts_assets.sft.tables import OptimizerConfig

Losses = tuple[Tensor, Tensor]  # the sum of a row, and each of its N targets
Tensors = dict[str, Tensor]


class Strategy(ABC):
    """One rank's part of a model that is trained by all."""

    lockstep: ClassVar[bool]  # every forward pass exchanges weights: ranks must do equally many

    @abstractmethod
    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        """Add the gradient of ``scale`` times the row's sum; averaged over ranks with the last."""

    @abstractmethod
    def evaluate(self, row: Packed) -> Losses:
        """The losses of a row, without dropout and gradients."""

    @abstractmethod
    def step(self, lr: float) -> float:
        """Clip, update, clear the gradients; returns the gradient's norm before clipping."""

    @abstractmethod
    def state(self) -> Tensors:
        """This rank's part of trained weights and moments, by the names of the checkpoint."""

    @abstractmethod
    def load(self, read: Callable[[Tensors], None], step: int) -> None:
        """Take over the state after ``step`` steps; ``read`` fills the tensors it is given."""

    @abstractmethod
    def weights(self) -> Tensors:
        """All weights that are trained, whole, in the memory of rank 0; empty elsewhere. All ranks
        take part."""

    @abstractmethod
    def parts(self) -> Iterator[Tensor]:
        """This rank's part of the weights; over all ranks each comes once. All take part."""


class TorchStrategy(Strategy):
    """Parameters that are tensors or DTensors, and torch's optimizers on them."""

    def __init__(self, run: Run, loss: SpeechLoss, config: OptimizerConfig) -> None:
        self.run = run
        self.loss = loss
        self.parallel: nn.Module = loss
        self.optimizers = Optimizers(loss.model, config)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        self.parallel.train()
        total, each = self.parallel(row)
        (total * scale).backward()
        return total.detach(), each

    @torch.no_grad()
    def evaluate(self, row: Packed) -> Losses:
        self.loss.eval()
        total, each = self.loss(row)
        return total, each

    def step(self, lr: float) -> float:
        return self.optimizers.step(lr)

    def tensors(self) -> Tensors:
        """Parameters and buffers between two steps, as this rank holds them."""
        return named_tensors(self.loss.model)

    def state(self) -> Tensors:
        named = self.tensors()
        names = {id(tensor): name for name, tensor in named.items()}
        weights = {f"model.{name}": tensor.detach() for name, tensor in named.items()}
        moments = {
            f"optimizer.{kind}.{names[id(parameter)]}": value
            for kind, parameter, value in self.optimizers.moments()
        }
        return weights | moments

    def load(self, read: Callable[[Tensors], None], step: int) -> None:
        self.optimizers.start_after(step)
        read(self.state())

    def parts(self) -> Iterator[Tensor]:
        for tensor in self.tensors().values():
            if isinstance(tensor, DTensor):
                yield tensor.to_local().detach()
            elif self.run.is_main:  # every rank has it
                yield tensor.detach()

    def weights(self) -> Tensors:
        whole = {}
        for name, tensor in self.tensors().items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.run.is_main:
                whole[name] = full.detach().to("cpu", copy=True)
        return whole


def named_tensors(model: nn.Module) -> Tensors:
    """Parameters that are trained and buffers that are saved; what goes by two names (a tied
    head) once."""
    seen: set[int] = set()
    named = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if id(tensor) not in seen and not frozen:
            seen.add(id(tensor))
            named[name] = tensor
    return named
