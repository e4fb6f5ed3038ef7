"""The numbers of a step: losses by source, speed, padding, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from tts_assets.program import Run
from tts_assets.sft.flops import Flops, peak
from tts_assets.sft.packing import Packed
from tts_assets.sft.strategies.base import Losses
from tts_assets.training.ranks import summed

SPEED = frozenset({"tokens_per_second", "padding_share", "memory_gb", "tflops", "mfu"})


class Meter:
    """Counts one batch over all ranks: first its tokens, then the losses of its rows."""

    def __init__(
        self, run: Run, sources: Sequence[str], rows: Sequence[Packed], text_weight: float = 0.0
    ) -> None:
        self.run, self.sources = run, sources
        self.started = time.perf_counter()
        by_source = torch.zeros(len(sources), dtype=torch.int64)
        for row in rows:
            by_source += torch.bincount(speech_of(row, row.sources), minlength=len(sources))
        size = sum(row.input_ids.numel() for row in rows)
        tokens = sum(row.tokens for row in rows)
        text = sum(row.text_targets for row in rows)
        counts = summed([tokens, size, text, *by_source.tolist()], run.device)
        self.tokens, self.size, self.text_targets, *self.counts = map(int, counts)
        self.targets = sum(self.counts)
        # The sum of a row is divided by the targets of speech alone.
        self.text_scale = text_weight * self.targets / max(1, self.text_targets)
        self._total = torch.zeros((), dtype=torch.float64, device=run.device)
        self._text = torch.zeros((), dtype=torch.float64, device=run.device)
        self._by_source = torch.zeros(len(sources), dtype=torch.float64, device=run.device)

    def add(self, row: Packed, losses: Losses) -> None:
        """Add a row of this rank."""
        total, each = losses
        self._total += total
        self._text += each[len(each) - row.text_targets :].double().sum()
        sources = speech_of(row, row.sources).to(self.run.device)
        self._by_source.index_add_(0, sources, speech_of(row, each).double())

    def losses(self) -> dict[str, float]:
        """Mean losses over all ranks: ``loss``, which is optimized; ``speech_loss`` and
        ``text_loss`` where it has both; that of speech as ``loss/<source>`` where there are
        several."""
        sums = [self._total, self._text, *self._by_source.tolist()]
        total, text, *by_source = summed(sums, self.run.device)
        named = {"loss": total / self.targets}
        if self.text_targets:
            named["speech_loss"] = sum(by_source) / self.targets
            named["text_loss"] = text / self.text_targets
        if len(self.sources) > 1:
            found = zip(self.sources, by_source, self.counts, strict=True)
            named |= {f"loss/{source}": sum_ / n for source, sum_, n in found if n}
        return named

    def speed(self, flops: Flops, lengths: Sequence[int]) -> dict[str, float]:
        """:data:`SPEED`: tokens a second, padding, memory of rank 0, and MFU where the peak is
        known."""
        seconds = time.perf_counter() - self.started
        rate = flops.of(lengths, self.targets + self.text_targets) / seconds / self.run.world_size
        best = peak(self.run.device)
        mfu = {"mfu": round(rate / best, 4)} if best else {}
        return {
            "tokens_per_second": round(self.tokens / seconds, 1),
            "padding_share": round(1 - self.tokens / self.size, 5),
            "memory_gb": round(memory(self.run.device) / 1e9, 3),
            "tflops": round(rate / 1e12, 5),
            **mfu,
        }


def speech_of(row: Packed, values: Tensor) -> Tensor:
    """Of a value a target, those of speech."""
    return values[: len(values) - row.text_targets]


def memory(device: torch.device) -> int:
    """The most bytes this process has held: of the GPU's memory, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
