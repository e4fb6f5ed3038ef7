"""The policy as vLLM's weight transfer reads it. Importing this needs vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

NamedWeights = Callable[[], Iterator[tuple[str, Tensor]]]


class PolicySource(WeightSource):
    """All weights by all of their names: vLLM's own source leaves out a tied output matrix."""

    def __init__(self, weights: NamedWeights) -> None:
        """``weights`` gives each weight and its name, in the dtype in which it is sent."""
        self.weights = weights

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, w.dtype, tuple(w.shape)) for name, w in self.weights()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self.weights()
