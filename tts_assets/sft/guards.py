"""When a run ends before its last step, or slows down, by what its validations say.

*Early stopping*: the metric of ``checkpoints.best`` has not fallen for ``patience`` validations.
*Forgetting*: continued training is good at the new voice and loses the old one. The losses of all
sources are measured before the first step; if that of one rises above it by more than
``forgetting``, the run ends, or goes on at half the learning rate from there. The weights of such a
validation are never the best, however low the loss over all sources is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field

from tts_assets.config import Config, ConfigError
from tts_assets.sft.tables import GuardConfig

FORGOTTEN = "val_forgotten"  # 1 in the metrics of a validation at which a source was forgotten
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
