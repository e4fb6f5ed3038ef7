"""The numbers of a step: losses by source, speed, padding, memory.

When a run ends before its last step, or slows down, by what its validations say.

*Early stopping*: the metric of ``checkpoints.best`` has not fallen for ``patience`` validations.
*Forgetting*: continued training is good at the new voice and loses the old one. The losses of all
sources are measured before the first step; if that of one rises above it by more than
``forgetting``, the run ends, or goes on at half the learning rate from there. The weights of such a
validation are never the best, however low the loss over all sources is.

Signs of health at each validation: of what the model says, and of its weights.

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

import resource
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from tts_assets.core.config import Config, ConfigError
from tts_assets.core.program import Run
from tts_assets.core.training import summed
from tts_assets.sft.config import GuardConfig
from tts_assets.sft.model import Flops, SpeechLoss, peak
from tts_assets.sft.packing import Packed
from tts_assets.sft.strategies import Losses, Strategy
from tts_assets.speechlm.loss import likeliest
from tts_assets.speechlm.vocabulary import SpeechVocabulary

SPEED = frozenset({"tokens_per_second", "padding_share", "memory_gb", "tflops", "mfu"})


class StepMetrics:
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


SLOWER = 0.5  # of the learning rate, each time that a source is being forgotten


class GuardState(Config):
    """What the guards remember; a part of every checkpoint."""

    first: dict[str, float] = Field(default_factory=dict)
    best: float | None = None
    waited: int = 0
    rate: float = 1.0
    ended: str = ""


class Guarded(NamedTuple):
    """The state after a validation, what is to be told (empty: nothing), and whether a source was
    forgotten then."""

    state: GuardState
    message: str = ""
    forgotten: bool = False


def by_source(losses: Mapping[str, float]) -> dict[str, float]:
    """The validation loss of each source, or of the only one."""
    several = {name: loss for name, loss in losses.items() if name.startswith("val_loss/")}
    return several or {"val_loss": losses["val_loss"]}


def begin(losses: Mapping[str, float]) -> GuardState:
    """Before the first step."""
    return GuardState(first=by_source(losses))


def check_watched(config: GuardConfig | None, best: str, silent: Sequence[str]) -> None:
    """Raise ConfigError if a source that is ``silent``, without a validation sample, is to be
    watched for forgetting, or its loss is the metric ``best``."""
    watched = config is not None and config.forgetting is not None
    for name in silent:
        if watched or best == f"val_loss/{name}":
            needs = "guards.forgetting watches" if watched else f"checkpoints.best = {best!r} needs"
            raise ConfigError(
                f"{needs} the validation loss of {name}, and no sample of {name} is in the "
                "validation split: raise [validation] fraction, or draw with another salt there"
            )


def judge(
    config: GuardConfig, state: GuardState, losses: Mapping[str, float], best: str
) -> Guarded:
    """After a validation; ``best`` is the metric that early stopping looks at."""
    forgotten = _forgotten(config, state, losses)
    if forgotten and config.on_forgetting == "stop":
        return Guarded(state.model_copy(update={"ended": forgotten}), forgotten, forgotten=True)
    lost = bool(forgotten)
    if lost:
        rate = state.rate * SLOWER
        state = state.model_copy(update={"rate": rate})
        forgotten = f"{forgotten}; the learning rate is now {rate:g} of the schedule's"
    value = losses.get(best, losses["val_loss"])
    if not lost and (state.best is None or value < state.best):
        return Guarded(state.model_copy(update={"best": value, "waited": 0}))
    state = state.model_copy(update={"waited": state.waited + 1})
    if config.patience is not None and state.waited >= config.patience:
        ended = _not_better(best, state)
        return Guarded(state.model_copy(update={"ended": ended}), ended, lost)
    return Guarded(state, forgotten, lost)


def _not_better(best: str, state: GuardState) -> str:
    if state.best is None:
        return f"a source was forgotten at each of {state.waited} validations"
    return f"{best} has not fallen below {state.best:.4f} for {state.waited} validations"


def _forgotten(config: GuardConfig, state: GuardState, losses: Mapping[str, float]) -> str:
    if config.forgetting is None:
        return ""
    limit = 1 + config.forgetting
    risen = {
        name: loss
        for name, loss in by_source(losses).items()
        if loss > state.first.get(name, loss) * limit
    }
    return "; ".join(
        f"{name} rose from {state.first[name]:.4f} before training to {loss:.4f}, more than "
        f"{config.forgetting:.0%}"
        for name, loss in risen.items()
    )


DIGITS = 6


class ModelDiagnostics:
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
