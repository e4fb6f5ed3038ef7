"""DistributedDataParallel: model and optimizer whole on every rank."""

from __future__ import annotations

from contextlib import nullcontext

from torch.nn.parallel import DistributedDataParallel

from tts_assets.program import Run
from tts_assets.sft.model import SpeechLoss
from tts_assets.sft.packing import Packed
from tts_assets.sft.strategies.base import Losses, TorchStrategy
from tts_assets.sft.tables import OptimizerConfig


class Ddp(TorchStrategy):
    lockstep = False

    def __init__(self, run: Run, loss: SpeechLoss, config: OptimizerConfig) -> None:
        super().__init__(run, loss, config)
        if run.world_size > 1:
            # No buckets of other dtypes, no unused parameters: the plain case of DDP.
            self.parallel = DistributedDataParallel(loss, gradient_as_bucket_view=True)

    def backward(self, row: Packed, scale: float, last: bool) -> Losses:
        wait = isinstance(self.parallel, DistributedDataParallel) and not last
        with self.parallel.no_sync() if wait else nullcontext():  # type: ignore[operator]
            return super().backward(row, scale, last)
