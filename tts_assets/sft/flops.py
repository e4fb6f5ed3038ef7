"""Model FLOPs of training, and what share of a GPU's they are (MFU).

Forward and backward of a matrix of P elements cost 6 P a token, causal attention over n tokens
6 n^2 a layer and feature (Chowdhery et al. 2022, PaLM, appendix B, halved for causality). The
table of the loss is multiplied with the positions that count alone; padding counts nowhere. A
frozen matrix needs no gradient of its own: 4 P.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tts_assets.sft.model import layers_of
from tts_assets.speechlm.model import output_table

# Dense bfloat16, from the makers' data sheets, in FLOP/s.
PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
}


class Flops:
    """Counts for one architecture; made before its weights are shared out."""

    def __init__(self, model: PreTrainedModel) -> None:
        layers = layers_of(model)
        self.matrices = sum(of_matrix(p) for m in layers for p in m.parameters() if p.ndim == 2)
        self.table = of_matrix(output_table(model))
        config = model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.features = len(layers) * config.num_attention_heads * head

    def of(self, lengths: Iterable[int], targets: int) -> float:
        """FLOPs of a step over samples of these ``lengths`` with ``targets`` in all."""
        lengths = list(lengths)
        attention = 6.0 * self.features * sum(n * n for n in lengths)
        return self.matrices * sum(lengths) + self.table * targets + attention


def of_matrix(matrix: Tensor) -> float:
    """FLOPs of a step that a matrix costs a token."""
    return (6.0 if matrix.requires_grad else 4.0) * matrix.numel()


def peak(device: torch.device) -> float | None:
    """The device's dense bfloat16 FLOP/s; None where it is not known (any CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAKS.items() if key in name), None)
