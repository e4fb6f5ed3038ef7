"""Metrics of a training and the decisions that follow from them.

:class:`StepMetrics` has the losses and the speed of one batch. :func:`check_loss` and
:func:`check_finite` end a run whose losses explode. :func:`apply_guards` ends a run early or lowers
its learning rate:

* *Early stopping*: the metric of ``checkpoints.best`` has not improved for ``patience``
  validations.
* *Forgetting*: continued training improves a new voice and can lose an old one. The losses of all
  sources are measured before the first step. If the loss of a source rises above that value by
  more than ``forgetting``, the run ends, or continues at half the learning rate. The weights of
  such a validation are never the best ones, however low the loss over all sources is.

:class:`ModelDiagnostics` adds these metrics to each validation. They are computed over the
validation utterances of all ranks, with the true past as input:

``val_accuracy``    share of speech codes for which the likeliest token is correct
``val_end_found``   share of samples at whose end ``<|speech_end|>`` is the likeliest token; below 1
                    the model does not stop
``val_end_false``   share of speech codes for which ``<|speech_end|>`` is the likeliest token; above
                    0 the model stops early
``val_entropy``     entropy of the distribution over all tokens in nats, mean over codes and ends;
                    0 is certainty, ln(vocabulary) is chance
``weight_norm``     norm of all weights; if it grows steadily, the learning rate is too high
``update_ratio``    norm of the change of the last step over that norm; 1e-3 is usual, 0 is no
                    learning
"""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from tts_assets.core.config import Config, ConfigError
from tts_assets.core.training import summed, world_size
from tts_assets.sft.config import GuardConfig
from tts_assets.sft.model import Flops, SpeechLoss, peak
from tts_assets.sft.packing import Packed
from tts_assets.sft.strategies import Losses, Strategy
from tts_assets.speechlm.ops import likeliest
from tts_assets.speechlm.vocabulary import SpeechVocabulary

SPEED = frozenset(
    {"tokens_per_second", "step_seconds", "data_seconds"}
    | {"padding_share", "memory_gb", "tflops", "mfu"}
)
EXPLODED = 3.0  # times ln(vocabulary), which is the loss at chance
LOWERED_RATE = 0.5  # factor of the learning rate at each validation that forgets a source
DIGITS = 6  # of diagnostics in metrics.jsonl


class StepMetrics:
    """The metrics of one batch over all ranks.

    The constructor counts tokens and targets, :meth:`add` adds the losses of a row of this rank.
    """

    def __init__(
        self,
        device: torch.device,
        sources: Sequence[str],
        rows: Sequence[Packed],
        text_weight: float = 0.0,
    ) -> None:
        self.device, self.sources = device, sources
        by_source = torch.zeros(len(sources), dtype=torch.int64)
        for row in rows:
            by_source += torch.bincount(speech_part(row, row.sources), minlength=len(sources))
        size = sum(row.input_ids.numel() for row in rows)
        tokens = sum(row.tokens for row in rows)
        text = sum(row.text_targets for row in rows)
        counts = summed([tokens, size, text, *by_source.tolist()], device)
        self.tokens, self.size, self.text_targets, *self.counts = map(int, counts)
        self.targets = sum(self.counts)
        # The loss sum of a row is divided by the number of speech targets alone.
        self.text_scale = text_weight * self.targets / max(1, self.text_targets)
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._text = torch.zeros((), dtype=torch.float64, device=device)
        self._by_source = torch.zeros(len(sources), dtype=torch.float64, device=device)

    def add(self, row: Packed, losses: Losses) -> None:
        """Add the losses of a row of this rank."""
        total, each = losses
        self._total += total
        self._text += each[len(each) - row.text_targets :].double().sum()
        sources = speech_part(row, row.sources).to(self.device)
        self._by_source.index_add_(0, sources, speech_part(row, each).double())

    def losses(self) -> dict[str, float]:
        """Mean losses over all ranks, in nats a token.

        ``loss`` is optimized. ``speech_loss`` and ``text_loss`` are its parts where text is in the
        loss. ``loss/<source>`` is the speech loss of a source where there are several sources.
        """
        sums = [self._total, self._text, *self._by_source.tolist()]
        total, text, *by_source = summed(sums, self.device)
        named = {"loss": total / self.targets}
        if self.text_targets:
            named["speech_loss"] = sum(by_source) / self.targets
            named["text_loss"] = text / self.text_targets
        if len(self.sources) > 1:
            found = zip(self.sources, by_source, self.counts, strict=True)
            named |= {f"loss/{source}": sum_ / n for source, sum_, n in found if n}
        return named

    def speed(self, flops: Flops, lengths: Sequence[int], seconds: float) -> dict[str, float]:
        """:data:`SPEED` of a step that took ``seconds``, with the wait for its batch.

        ``lengths`` are the lengths of the samples of the batch. Times and ``memory_gb`` are those
        of rank 0. ``mfu`` is left out where the peak of the device is not known.
        """
        rate = flops.of(lengths, self.targets + self.text_targets) / seconds / world_size()
        best = peak(self.device)
        mfu = {"mfu": round(rate / best, 4)} if best else {}
        return {
            "tokens_per_second": round(self.tokens / seconds, 1),
            "step_seconds": round(seconds, 4),
            "padding_share": round(1 - self.tokens / self.size, 5),
            "memory_gb": round(peak_memory(self.device) / 1e9, 3),
            "tflops": round(rate / 1e12, 5),
            **mfu,
        }


def speech_part(row: Packed, values: Tensor) -> Tensor:
    """The values (N,) of the targets of ``row`` that are speech."""
    return values[: len(values) - row.text_targets]


def peak_memory(device: torch.device) -> int:
    """The peak of this process in bytes: allocated GPU memory, or resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_loss(what: str, value: float, limit: float, step: int, samples: Sequence[str]) -> None:
    """Raise FloatingPointError unless ``value`` is below ``limit``; NaN is not.

    ``samples`` are the names of the samples of the batch, for the message.
    """
    if value < limit:
        return
    raise FloatingPointError(
        f"the {what} of step {step} is {value}; the batch: {', '.join(samples)}. Lower the "
        "learning rate, or look at these samples"
    )


def check_finite(losses: Mapping[str, float], step: int) -> None:
    """Raise FloatingPointError if a validation loss is not finite.

    NaN compares as false with any number, so such weights could be taken for the best ones.
    """
    if wrong := {name: loss for name, loss in losses.items() if not math.isfinite(loss)}:
        named = ", ".join(f"{name} is {loss}" for name, loss in wrong.items())
        raise FloatingPointError(
            f"after step {step}: {named}. Lower the learning rate, or look at the validation "
            "samples"
        )


class GuardState(Config):
    """The state of the guards, which is part of every checkpoint.

    ``first`` are the losses by source before training, ``best`` the best value of the watched
    metric, ``waited`` the validations since then, ``rate`` the factor of the learning rate, and
    ``ended`` the reason why the run ended early; empty while it has not.
    """

    first: dict[str, float] = Field(default_factory=dict)
    best: float | None = None
    waited: int = 0
    rate: float = 1.0
    ended: str = ""


class GuardResult(NamedTuple):
    """The new state after a validation, a message for the log (empty: none), and whether a source
    was forgotten."""

    state: GuardState
    message: str = ""
    forgotten: bool = False


def by_source(losses: Mapping[str, float]) -> dict[str, float]:
    """The validation loss of each source, or of the only source."""
    several = {name: loss for name, loss in losses.items() if name.startswith("val_loss/")}
    return several or {"val_loss": losses["val_loss"]}


def initial_state(losses: Mapping[str, float]) -> GuardState:
    """The state before the first step, from the validation losses of the base."""
    return GuardState(first=by_source(losses))


def check_watched(config: GuardConfig | None, best: str, missing: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if a metric that is needed cannot be measured.

    ``missing`` are the sources without validation samples. Their losses are needed if guards watch
    for forgetting, or if one of them is the metric ``best``.
    """
    watched = config is not None and config.forgetting is not None
    for name in missing:
        if watched or best == f"val_loss/{name}":
            needs = "guards.forgetting watches" if watched else f"checkpoints.best = {best!r} needs"
            raise ConfigError(
                f"{needs} the validation loss of {name}, and no sample of {name} is in the "
                "validation split: raise [validation] fraction, or draw with another salt there"
            )


def apply_guards(
    config: GuardConfig, state: GuardState, losses: Mapping[str, float], best: str
) -> GuardResult:
    """Apply the guards after a validation. ``best`` is the metric of early stopping."""
    message = _forgotten(config, state, losses)
    if message and config.on_forgetting == "stop":
        return GuardResult(state.model_copy(update={"ended": message}), message, forgotten=True)
    forgotten = bool(message)
    if forgotten:
        rate = state.rate * LOWERED_RATE
        state = state.model_copy(update={"rate": rate})
        message = f"{message}; the learning rate is now {rate:g} of the schedule's"
    value = losses.get(best, losses["val_loss"])
    if not forgotten and (state.best is None or value < state.best):
        return GuardResult(state.model_copy(update={"best": value, "waited": 0}))
    state = state.model_copy(update={"waited": state.waited + 1})
    if config.patience is not None and state.waited >= config.patience:
        ended = _not_better(best, state)
        return GuardResult(state.model_copy(update={"ended": ended}), ended, forgotten)
    return GuardResult(state, message, forgotten)


def _not_better(best: str, state: GuardState) -> str:
    if state.best is None:
        return f"a source was forgotten at each of {state.waited} validations"
    return f"{best} has not fallen below {state.best:.4f} for {state.waited} validations"


def _forgotten(config: GuardConfig, state: GuardState, losses: Mapping[str, float]) -> str:
    """The message about sources whose loss rose too far; empty if there is none."""
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


class ModelDiagnostics:
    """Accumulates diagnostics of one rank from the validation forward passes of ``loss``."""

    def __init__(
        self,
        device: torch.device,
        strategy: Strategy,
        loss: SpeechLoss,
        vocabulary: SpeechVocabulary,
    ) -> None:
        self.device, self.strategy = device, strategy
        self.is_code = torch.from_numpy(vocabulary.id_to_code >= 0).to(device)
        self.end = vocabulary.speech_end
        self.counts = self._zeros()
        self._before: list[Tensor] | None = None
        loss.probe = self.add

    def _zeros(self) -> Tensor:
        """Codes, correct codes, codes predicted as ends; ends, correct ends; entropy."""
        return torch.zeros(6, dtype=torch.float64, device=self.device)

    def add(self, hidden: Tensor, table: Tensor, targets: Tensor) -> None:
        """Add the positions of a row: hidden (N, H), output matrix (V, H), targets (N,)."""
        counted = self.is_code[targets] | (targets == self.end)
        hidden, targets = hidden[counted], targets[counted]
        predicted, entropy = likeliest(hidden, table)
        code, right = targets != self.end, predicted == targets
        sums = [code, code & right, code & (predicted == self.end), ~code, ~code & right, entropy]
        self.counts += torch.stack([part.sum(dtype=torch.float64) for part in sums])

    def remember(self) -> None:
        """Copy the weights to host memory, to measure the change of the next step."""
        self._before = [weight.to("cpu", copy=True) for weight in self.strategy.parts()]

    def report(self) -> dict[str, float]:
        """The diagnostics since the last report, the same on all ranks.

        Metrics without data are left out. All ranks must call it.
        """
        codes, found, broken, ends, closed, entropy = summed(self.counts.tolist(), self.device)
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
            squares += squared_norm(weight)
            if self._before is not None:
                changes += squared_norm(weight.cpu() - self._before[number])
        moved = self._before is not None
        self._before = None
        squares, changes = summed([squares, changes], self.device)
        named = {"weight_norm": squares**0.5}
        return named | {"update_ratio": (changes / squares) ** 0.5} if moved else named


def squared_norm(tensor: Tensor) -> float:
    """The squared Euclidean norm of a tensor of any shape."""
    return float(torch.linalg.vector_norm(tensor.detach())) ** 2
