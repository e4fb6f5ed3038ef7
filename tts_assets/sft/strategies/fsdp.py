"""FSDP2: weights, gradients and optimizer in shards, a layer whole while it is at work."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from tts_assets.program import Run
from tts_assets.sft.model import SpeechLoss, layers_of
from tts_assets.sft.packing import Packed
from tts_assets.sft.strategies.base import Losses, Tensors, TorchStrategy
from tts_assets.sft.tables import OptimizerConfig


class Fsdp(TorchStrategy):
    lockstep = True

    def __init__(self, run: Run, loss: SpeechLoss, config: OptimizerConfig) -> None:
        mesh = init_device_mesh(run.device.type, (run.world_size,))
        # Layers travel in bfloat16, half the bytes: autocast would round the same weights. Their
        # inputs stay float32, as without sharding, and so does the root: the table of the loss.
        dtype = torch.bfloat16 if loss.bf16 else None
        layers = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        root = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
        for layer in layers_of(loss.model):
            fully_shard(layer, mesh=mesh, mp_policy=layers)
        self.shards: FSDPModule = fully_shard(loss, mesh=mesh, mp_policy=root)
        super().__init__(run, loss, config)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        self.shards.set_requires_gradient_sync(last)
        return super().backward(row, scale, last)

    def evaluate(self, row: Packed) -> Losses:
        losses = super().evaluate(row)
        self.shards.reshard()  # without a backward pass the root would stay whole
        return losses

    def tensors(self) -> Tensors:
        self.shards.reshard()
        return super().tensors()
