"""What vLLM's workers learn in addition: to take the policy's weights from a file.

vLLM mixes the class into its own worker, which has ``model_runner``.
"""

from __future__ import annotations

from typing import Any

from safetensors.torch import load_file

EXTENSION = "tts_assets.rlhf.engine_worker.TakesWeights"


class TakesWeights:
    """Named in ``worker_extension_cls``; its methods are called by ``collective_rpc``."""

    model_runner: Any

    def take_weights_file(self, path: str) -> None:
        """Replace the model's weights by those of a safetensors file with all of their names.

        Also the output matrix of a tied model must be there by its own name: vLLM reloads layer
        by layer, and one that it is given nothing for keeps its old weights without a word.
        """
        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))
