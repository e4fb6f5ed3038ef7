"""The logits processor of vLLM for codecs with several codebooks. vLLM imports it by its name.

It allows the codes of the position that comes next in the frame, and the end only between frames:
the same tokens as ``speechlm/generate.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from tts_assets.speechlm.generate import allowed_at, allowed_ids
from tts_assets.speechlm.vocabulary import saved_vocabulary


class FrameProcessor(LogitsProcessor):
    """Excludes all tokens but those of the next position. Prompts end with whole frames."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Reads the vocabulary of the served folder."""
        vocabulary = saved_vocabulary(Path(vllm_config.model_config.model))
        self.ids = torch.from_numpy(allowed_ids(vocabulary)).to(device)
        self.allowed = torch.from_numpy(allowed_at(vocabulary)).to(device)
        self.excluded = torch.empty(0, 0, dtype=torch.bool, device=device)
        self.sampled: dict[int, list[int]] = {}  # the tokens of each row of the batch

    def is_argmax_invariant(self) -> bool:
        """False: greedy sampling depends on it."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that join the batch, leave it or move."""
        process_dict_updates(self.sampled, batch_update, lambda _, __, sampled: sampled)

    def apply(self, logits: Tensor) -> Tensor:
        """Set the logits (B, V) of excluded tokens to minus infinity."""
        if self.excluded.shape[1] != logits.shape[1]:
            self.excluded = logits.new_ones(
                len(self.allowed), logits.shape[1], dtype=torch.bool
            ).index_copy(1, self.ids, ~self.allowed)
        positions = [len(self.sampled[row]) % len(self.allowed) for row in range(len(logits))]
        return logits.masked_fill_(self.excluded[positions], -torch.inf)
