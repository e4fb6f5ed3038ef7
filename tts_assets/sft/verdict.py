"""Whether a model has learnt its recordings by heart, said from the losses of its run.

The gap is the validation loss minus the training loss around the same step. Alone it says little:
a small corpus always has one. Over-fitting is a validation loss that rises again while training
still falls; what was published is then looked at: the best weights, or the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tts_assets.sft.guards import FORGOTTEN

Word = Literal["learning", "settled", "over-fitted", "not validated", "not trained"]
RISE = 0.02  # of the lowest validation loss: above this it rose, below it is noise
FALL = 0.02  # of the loss two validations ago: above this the run had not settled
AROUND = 0.05  # of all steps: training losses are averaged over as many before a validation
SETTLED = "The validation loss has settled: more steps bring little."
LEARNING = "The validation loss still falls: train longer."


@dataclass(frozen=True)
class Verdict:
    """``gap`` and ``rise`` in nats a token; ``rise`` from the lowest validation to the last."""

    word: Word
    sentence: str
    gap: float | None = None
    rise: float | None = None


def verdict(records: Sequence[Mapping[str, float]], exported: Literal["best", "last"]) -> Verdict:
    """Of the lines of a ``metrics.jsonl``."""
    every = [r for r in records if "val_loss" in r]
    trained = [(int(r["step"]), r["loss"]) for r in records if "loss" in r]
    validated = [(int(r["step"]), r["val_loss"]) for r in every if r["step"]]
    if not trained:
        return Verdict("not trained", "This is the base as it is: steps = 0.")
    if not validated:
        return Verdict("not validated", "There was no validation: give the corpora a share of it.")
    # The best is one that forgets no source; without such, that before the first step.
    good = [(int(r["step"]), r["val_loss"]) for r in every if not r.get(FORGOTTEN)]
    good = [at for at in good if at[0]] or good
    best_step, lowest = min(good, key=lambda at: at[1])
    last_step, last = validated[-1]
    gap = last - train_loss(trained, last_step)
    rise = last - lowest
    if rise > RISE * lowest and train_loss(trained, last_step) < train_loss(trained, best_step):
        return Verdict("over-fitted", _over_fitted(best_step, rise, exported), gap, rise)
    if len(validated) > 2 and validated[-3][1] - last < FALL * validated[-3][1]:
        return Verdict("settled", SETTLED, gap, rise)
    return Verdict("learning", LEARNING, gap, rise)


def train_loss(trained: Sequence[tuple[int, float]], step: int) -> float:
    """The mean training loss in the steps before a validation."""
    window = max(1, round(AROUND * trained[-1][0]))
    losses = [loss for at, loss in trained if step - window < at <= step]
    return sum(losses) / len(losses) if losses else trained[0][1]


def _over_fitted(best_step: int, rise: float, exported: Literal["best", "last"]) -> str:
    published = (
        "The weights of that step are published."
        if exported == "best"
        else 'The last weights are published: write export = "best", or fewer steps.'
    )
    return (
        f"Over-fitted: the validation loss was lowest after step {best_step} and rose by "
        f"{rise:.3f} while training went on falling. {published}"
    )
