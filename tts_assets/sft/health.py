"""Signs of health at each validation: of what the model says, and of its weights.

``val_accuracy``    share of speech codes that are the likeliest token
``val_end_found``   share of samples at whose end ``<|speech_end|>`` is the likeliest token: below 1
                    the model goes on talking
``val_end_false``   share of speech codes for which it is the likeliest: above 0 it breaks off
``val_entropy``     of the distribution over all tokens, mean over codes and ends, in nats: near 0
                    the model is certain, at ln(vocabulary) it knows nothing
``weight_norm``     of all weights together: it grows steadily, or the learning rate is too high
``update_ratio``    size of the last step's change over that norm; 1e-3 is usual, 0 is no learning

All are over the ranks' validation utterances together, the true past given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tts_assets.program import Run
from tts_assets.sft.model import SpeechLoss
from tts_assets.sft.strategies.base import Strategy
from tts_assets.speechlm.loss import likeliest
from tts_assets.speechlm.vocabulary import SpeechVocabulary
from tts_assets.training.ranks import summed

DIGITS = 6


class Health:
    """Counts what passes through ``loss`` outside of training; a part of every rank's trainer."""

    def __init__(
        self, run: Run, strategy: Strategy, loss: SpeechLoss, vocabulary: SpeechVocabulary
    ) -> None:
        self.run, self.strategy = run, strategy
        self.is_code = torch.from_numpy(vocabulary.id_to_code >= 0).to(run.device)
        self.end = vocabulary.speech_end
        self.counts = self._zeros()
        self._before: list[Tensor] | None = None
        loss.probe = self.add

    def _zeros(self) -> Tensor:
        """Codes, codes found, ends said for them; ends, ends found; entropy."""
        return torch.zeros(6, dtype=torch.float64, device=self.run.device)

    def add(self, hidden: Tensor, table: Tensor, targets: Tensor) -> None:
        """Count the positions of a row: hidden (N, H), table (V, H), targets (N,)."""
        counted = self.is_code[targets] | (targets == self.end)
        hidden, targets = hidden[counted], targets[counted]
        said, entropy = likeliest(hidden, table)
        code, right = targets != self.end, said == targets
        sums = [code, code & right, code & (said == self.end), ~code, ~code & right, entropy]
        self.counts += torch.stack([part.sum(dtype=torch.float64) for part in sums])

    def remember(self) -> None:
        """Before a step: the weights that its change is measured from, in the host's memory."""
        self._before = [weight.to("cpu", copy=True) for weight in self.strategy.parts()]

    def report(self) -> dict[str, float]:
        """The numbers since the last report, the same on all ranks; those that can be told."""
        codes, found, broken, ends, closed, entropy = summed(self.counts.tolist(), self.run.device)
        self.counts = self._zeros()
        named = self._of_weights()
        if codes:
            named |= {
                "val_accuracy": found / codes,
                "val_end_found": closed / ends,
                "val_end_false": broken / codes,
                "val_entropy": entropy / (codes + ends),
            }
        return {name: round(value, DIGITS) for name, value in named.items()}

    def _of_weights(self) -> dict[str, float]:
        squares = changes = 0.0
        for number, weight in enumerate(self.strategy.parts()):
            squares += square(weight)
            if self._before is not None:
                changes += square(weight.cpu() - self._before[number])
        moved = self._before is not None
        self._before = None
        squares, changes = summed([squares, changes], self.run.device)
        named = {"weight_norm": squares**0.5}
        return named | {"update_ratio": (changes / squares) ** 0.5} if moved else named


def square(tensor: Tensor) -> float:
    """The squared norm."""
    return float(torch.linalg.vector_norm(tensor.detach())) ** 2
