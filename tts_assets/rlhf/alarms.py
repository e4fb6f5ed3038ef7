"""Alarms for a policy that collapses or does not learn, computed from the metrics of a run.

Each alarm compares the mean of the last ``window`` steps with the mean of the first ``window``
steps; that of equal rewards needs the last ones only. A metric that a run does not have raises no
alarm (the KL divergence with ``beta = 0``, DNSMOS without such a reward).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tts_assets.core.config import Config

Record = Mapping[str, float]
NGRAM = 8  # codes, 0.16 s at 50 codes a second: real speech rarely repeats such a sequence
REPETITION = 0.5  # largest part of repeated n-grams
QUALITY_LOSS = 0.05  # largest decrease of a sound reward while WER improves
EQUAL_REWARDS = 0.9  # largest part of prompts whose completions all have the same reward
CHOSEN_LOSS = 0.1  # largest decrease of the preferred completions' log-probability, nats a token
PREFIX = "alarm/"  # of the metric that marks a step with an alarm
SOUND_REWARDS = {"dnsmos": "DNSMOS", "similarity": "speaker similarity"}


class AlarmConfig(Config):
    """Thresholds of the collapse alarms. 0 disables an alarm."""

    removed_keys: ClassVar = {"repetition": REPETITION, "quality": QUALITY_LOSS}

    window: int = Field(5, ge=1, description="steps to average")
    entropy: float = Field(0.3, ge=0, lt=1, description="alarm below this part of the first value")
    rate: float = Field(
        1.5, ge=0, description="alarm if WER falls and the speech rate changes by more than this"
    )
    length: float = Field(2.0, ge=0, description="alarm if the length changes by more than this")
    kl: float = Field(1.0, ge=0, description="alarm above this KL divergence, nats a token")


@dataclass(frozen=True)
class Alarm:
    """An alarm: its kind, and a message with the measured values."""

    name: str
    message: str


def alarms(records: Sequence[Record], config: AlarmConfig) -> list[Alarm]:
    """Returns the alarms after the last record.

    Args:
        records: the metrics of each training step, in order.
        config: the thresholds.
    """
    if len(records) < config.window:
        return []
    change = _Change(records[: config.window], records[-config.window :])
    found = [*_equal_rewards(change, config)]
    if len(records) >= 2 * config.window:
        checks = (_entropy, _repetition, _reward_hacking, _length, _kl, _chosen)
        found += [alarm for check in checks for alarm in check(change, config)]
    return found


def first_alarms(records: Sequence[Record], config: AlarmConfig) -> dict[str, tuple[int, str]]:
    """Returns the first step and the message of each alarm in a run, by the alarm's name."""
    found: dict[str, tuple[int, str]] = {}
    for end in range(1, len(records) + 1):
        for alarm in alarms(records[:end], config):
            found.setdefault(alarm.name, (int(records[end - 1]["step"]), alarm.message))
    return found


def repeated_share(codes: NDArray[np.int64]) -> float:
    """Returns the part of n-grams that occur earlier in the completion, in [0, 1).

    Args:
        codes: speech codes, shape (T,). Up to 8 codes contain no repetition.
    """
    if len(codes) <= NGRAM:
        return 0.0
    ngrams = np.lib.stride_tricks.sliding_window_view(codes, NGRAM)  # (T - 7, 8)
    return 1 - len(np.unique(ngrams, axis=0)) / len(ngrams)


class CollapseMonitor:
    """Checks each new record of a run, and logs each kind of alarm once."""

    def __init__(
        self, config: AlarmConfig, records: Sequence[Record], log: Callable[[str], None]
    ) -> None:
        """``records``: the steps before this start, if the run resumes."""
        self.config, self.records, self.log = config, list(records), log
        self.logged = {key for record in records for key in record if key.startswith(PREFIX)}

    def update(self, step: int, record: Record) -> dict[str, float]:
        """Adds the record of a step and returns a metric ``alarm/<name>`` of 1 for each alarm."""
        self.records.append(record)
        found = alarms(self.records, self.config)
        for alarm in found:
            if PREFIX + alarm.name not in self.logged:
                self.log(f"alarm {alarm.name} after update {step}: {alarm.message}")
        raised = {PREFIX + alarm.name: 1.0 for alarm in found}
        self.logged |= raised.keys()
        return raised


class _Change:
    """Means of metrics over the first steps and over the last steps."""

    def __init__(self, first: Sequence[Record], last: Sequence[Record]) -> None:
        self.first, self.last = first, last

    def of(self, key: str) -> tuple[float, float] | None:
        """Returns both means of a metric; None if a step does not have it."""
        if not all(key in record for record in (*self.first, *self.last)):
            return None
        before, now = ([record[key] for record in part] for part in (self.first, self.last))
        return float(np.mean(before)), float(np.mean(now))


def _equal_rewards(change: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    """GRPO compares completions of one prompt: equal rewards have no advantage and no gradient."""
    equal = change.of("frac_reward_zero_std")
    if equal and equal[1] > EQUAL_REWARDS:
        yield Alarm(
            "equal_rewards",
            f"all completions of {equal[1]:.0%} of the prompts have the same reward, so that "
            "nothing is learned; use rewards that tell them apart, or harder texts",
        )


def _entropy(change: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    entropy = change.of("entropy")
    if entropy and entropy[1] < config.entropy * entropy[0]:
        yield Alarm("entropy", f"entropy fell from {entropy[0]:.2f} to {entropy[1]:.2f} nats")


def _repetition(change: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    repetition = change.of("repetition")
    if repetition and repetition[1] > max(REPETITION, repetition[0]):
        yield Alarm("repetition", f"{repetition[1]:.0%} of the code n-grams are repeated")


def _reward_hacking(change: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    """The WER improves while the sound or the speech rate degrades."""
    wer = change.of("wer")
    if wer is None or wer[1] >= wer[0]:
        return
    improved = f"WER fell from {wer[0]:.2f} to {wer[1]:.2f}, but"
    for reward, quality in SOUND_REWARDS.items():
        value = change.of(f"rewards/{reward}/mean")
        if value and value[1] < value[0] - QUALITY_LOSS:
            loss = f"the {quality} reward fell from {value[0]:.2f} to {value[1]:.2f}"
            yield Alarm(f"hacking_{reward}", f"{improved} {loss}")
    rate = change.of("characters_per_second")
    if rate and _changed_by(rate, config.rate):
        went = f"the speech rate went from {rate[0]:.1f} to {rate[1]:.1f} characters a second"
        yield Alarm("hacking_rate", f"{improved} {went}")


def _length(change: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    seconds = change.of("seconds")
    if seconds and _changed_by(seconds, config.length):
        yield Alarm("length", f"completions went from {seconds[0]:.1f} to {seconds[1]:.1f} s")


def _kl(change: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    kl = change.of("kl")
    if kl and config.kl and kl[1] > config.kl:
        yield Alarm("kl", f"the KL divergence to the base is {kl[1]:.2f} nats a token")


def _chosen(change: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    """DPO may lower both log-probabilities of a pair, and so raise those of anything else.

    Source: Razin et al. 2024, Unintentional Unalignment, arXiv 2410.08847.
    """
    chosen = change.of("chosen_change")
    if chosen and chosen[1] < -CHOSEN_LOSS:
        yield Alarm(
            "chosen",
            f"the preferred completions lost {-chosen[1]:.2f} nats a token against the base; lower "
            "the learning_rate, or raise beta",
        )


def _changed_by(means: tuple[float, float], factor: float) -> bool:
    """Whether a metric grew or shrank by more than ``factor``; 0: never."""
    before, now = means
    return bool(factor) and (now > factor * before or before > factor * now)
