"""Signs that a policy collapses, read from the metrics of a run alone.

Each compares the mean of the last ``window`` steps with that of the first ``window``. What is not
measured (a KL of weight 0, DNSMOS that is no reward of the recipe) raises no alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tts_assets.core.config import Config

Record = Mapping[str, float]
NGRAM = 8  # codes, 0.16 s at 50 a second: real speech says few such stretches twice
PREFIX = "alarm/"  # of the metric of a step at which an alarm is raised
QUALITIES = {"dnsmos": "naturalness", "similarity": "likeness of the voice"}


class AlarmConfig(Config):
    """``[rlhf.<name>.alarms]``: when a run has collapsed. 0 turns an alarm off."""

    window: int = Field(5, ge=1, description="steps that are averaged")
    entropy: float = Field(0.3, ge=0, lt=1, description="alarm below this share of the first")
    repetition: float = Field(
        0.5, ge=0, le=1, description=f"alarm above this share of repeated runs of {NGRAM} codes"
    )
    quality: float = Field(
        0.05, ge=0, description="alarm if WER falls and a reward of sound loses more than this"
    )
    rate: float = Field(
        1.5, ge=0, description="alarm if WER falls by speaking so many times faster or slower"
    )
    length: float = Field(2.0, ge=0, description="alarm if so many times longer or shorter")
    kl: float = Field(1.0, ge=0, description="alarm above, nats a token")


@dataclass(frozen=True)
class Alarm:
    """``name`` of the kind, and what was seen, for a person."""

    name: str
    message: str


def alarms(records: Sequence[Record], config: AlarmConfig) -> list[Alarm]:
    """What is wrong after the last of ``records``, one a step of training, in their order."""
    if len(records) < 2 * config.window:
        return []
    seen = _Change(records[: config.window], records[-config.window :])
    checks = (_entropy, _repetition, _hacking, _length, _kl)
    return [alarm for check in checks for alarm in check(seen, config)]


def first_alarms(records: Sequence[Record], config: AlarmConfig) -> dict[str, tuple[int, str]]:
    """Each alarm that was raised in a run: the step at which it was first, and what was seen."""
    found: dict[str, tuple[int, str]] = {}
    for end in range(1, len(records) + 1):
        for alarm in alarms(records[:end], config):
            found.setdefault(alarm.name, (int(records[end - 1]["step"]), alarm.message))
    return found


def repeated_share(codes: NDArray[np.int64]) -> float:
    """The share of runs of 8 codes that a completion has said before; 0 if it is shorter."""
    if len(codes) <= NGRAM:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(codes, NGRAM)
    return 1 - len(np.unique(runs, axis=0)) / len(runs)


class CollapseMonitor:
    """Sees the records of a run as they come, and tells of each alarm once."""

    def __init__(
        self, config: AlarmConfig, seen: Sequence[Record], tell: Callable[[str], None]
    ) -> None:
        """``seen``: the records of a run that is resumed."""
        self.config, self.records, self.tell = config, list(seen), tell
        self.told = {key for record in seen for key in record if key.startswith(PREFIX)}

    def see(self, step: int, record: Record) -> dict[str, float]:
        """The metrics of the alarms that are raised at this step: 1 for each."""
        self.records.append(record)
        found = alarms(self.records, self.config)
        for alarm in found:
            if PREFIX + alarm.name not in self.told:
                self.tell(f"alarm {alarm.name} after update {step}: {alarm.message}")
        raised = {PREFIX + alarm.name: 1.0 for alarm in found}
        self.told |= raised.keys()
        return raised


class _Change:
    """Means of a metric over the first and the last steps."""

    def __init__(self, first: Sequence[Record], last: Sequence[Record]) -> None:
        self.first, self.last = first, last

    def of(self, key: str) -> tuple[float, float] | None:
        """Before and now; None where one of the steps has no such metric."""
        if not all(key in record for record in (*self.first, *self.last)):
            return None
        before, now = ([record[key] for record in part] for part in (self.first, self.last))
        return float(np.mean(before)), float(np.mean(now))


def _entropy(seen: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    change = seen.of("entropy")
    if change and change[1] < config.entropy * change[0]:
        yield Alarm("entropy", f"entropy fell from {change[0]:.2f} to {change[1]:.2f} nats")


def _repetition(seen: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    change = seen.of("repetition")
    if change and config.repetition and change[1] > max(config.repetition, change[0]):
        yield Alarm("repetition", f"{change[1]:.0%} of the speech repeats itself")


def _hacking(seen: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    """Better understood, and yet worse to listen to."""
    wer = seen.of("wer")
    if wer is None or wer[1] >= wer[0]:
        return
    words = f"WER fell from {wer[0]:.2f} to {wer[1]:.2f}, but"
    for reward, quality in QUALITIES.items():
        change = seen.of(f"rewards/{reward}/mean")
        if change and config.quality and change[1] < change[0] - config.quality:
            loss = f"{quality} from {change[0]:.2f} to {change[1]:.2f}"
            yield Alarm(f"hacking_{reward}", f"{words} {loss} (as rewards)")
    rate = seen.of("characters_per_second")
    if rate and _leaves(rate, config.rate):
        change_of = f"from {rate[0]:.1f} to {rate[1]:.1f} characters a second"
        yield Alarm("hacking_rate", f"{words} it speaks {change_of}")


def _length(seen: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    change = seen.of("seconds")
    if change and _leaves(change, config.length):
        yield Alarm("length", f"completions went from {change[0]:.1f} to {change[1]:.1f} s")


def _kl(seen: _Change, config: AlarmConfig) -> Iterator[Alarm]:
    change = seen.of("kl")
    if change and config.kl and change[1] > config.kl:
        yield Alarm("kl", f"the KL to the base is {change[1]:.2f} nats a token")


def _leaves(change: tuple[float, float], factor: float) -> bool:
    """Whether a quantity grew or shrank by more than ``factor``."""
    before, now = change
    return bool(factor) and (now > factor * before or before > factor * now)
