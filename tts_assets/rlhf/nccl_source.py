"""The policy as vLLM's weight transfer reads it. Importing this needs vLLM."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from tts_assets.rlhf.weights import named_weights


class PolicySource(WeightSource):
    """All weights by all of their names: vLLM's own source leaves out a tied output matrix."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype

    def metadata(self) -> list[ParamMeta]:
        return [
            ParamMeta(name, self.dtype or tensor.dtype, tuple(tensor.shape))
            for name, tensor in self.model.state_dict().items()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return named_weights(self.model, self.dtype)
