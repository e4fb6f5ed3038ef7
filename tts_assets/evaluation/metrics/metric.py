"""A metric: what is measured of an utterance, and how it is shown.

One's own is a subclass of :class:`Metric` in any importable module, named in the configuration::

    [evaluation]
    metrics = ["words", "dnsmos", "my_package.brightness:Brightness"]

What a metric gave is kept by the digest of the audio, the metric's name and version and its
:meth:`~Metric.key`; raise ``version`` when the numbers change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from tts_assets.audio_models.wer import TextMatch
from tts_assets.core.audio import Wave
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.suite import SuiteText


@dataclass(frozen=True)
class Column:
    """One number of a metric: what it is called, and which way is better.

    ``weight``: a total is the mean over utterances, or weighs each by its words or characters,
    so that it is a rate of all words. ``shown``: a column of the table of utterances.
    """

    name: str
    title: str
    about: str
    better: Literal["low", "high", ""] = ""
    weight: Literal["", "words", "characters"] = ""
    unit: Literal["", "%", "Hz", "s", "words", "words/s", "semitones"] = ""
    digits: int = 2
    shown: bool = False

    def text(self, value: float) -> str:
        """A value as people read it; shares in per cent."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def number(self, value: float) -> str:
        """The same without its unit; a whole number of words has no digits."""
        scaled = 100 * value if self.unit == "%" else value
        digits = 0 if self.unit == "words" and value == int(value) else self.digits
        return f"{scaled:.{digits}f}"

    @property
    def head(self) -> str:
        """The title of a column of numbers."""
        return f"{self.title}, {self.unit}" if self.unit not in ("", "words") else self.title

    def range(self, low: float, high: float) -> str:
        return f"{self.number(low)} to {self.text(high)}"

    def signed(self, difference: float) -> str:
        """A difference with its sign; of shares in percentage points."""
        return f"{self._change(difference)} {self._change_unit}".rstrip()

    def signed_range(self, low: float, high: float) -> str:
        return f"{self._change(low)} to {self._change(high)} {self._change_unit}".rstrip()

    @property
    def _change_unit(self) -> str:
        return "points" if self.unit == "%" else self.unit

    def _change(self, difference: float) -> str:
        scaled = 100 * difference if self.unit == "%" else difference
        number = f"{scaled:+.{self.digits}f}"
        return (number if float(number) else number[1:]).replace("-", "−")


@dataclass(frozen=True)
class Utterance:
    """A synthesis as it can be heard: mono float32 (samples,), its text, and the transcript.

    ``digest`` is that of its file; an utterance without audio has 0 samples and no digest.
    """

    text: SuiteText
    wave: Wave
    rate: int
    digest: str
    ended: bool
    heard: str
    match: TextMatch

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate


@dataclass(frozen=True)
class Unmeasured:
    """No value, and the reason: short, and the same for all of a kind."""

    reason: str


Values = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """What a metric may need beside the utterance (see ``EvaluationProgram``)."""

    config: EvaluationConfig
    references: tuple[Path, ...] = ()
    speakers: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    characters_per_second: float = 0.0


class Metric(ABC):
    """Numbers of utterances. It is made once a process, when the first is needed."""

    name: ClassVar[str]
    version: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @classmethod
    def missing(cls, config: EvaluationConfig) -> str:
        """Why this configuration cannot measure it; empty if it can."""
        return ""

    def key(self, utterance: Utterance) -> str | None:
        """What but the audio decides the values; None: they are not worth keeping."""
        return ""

    @abstractmethod
    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        """The values of each utterance by column, or why there are none.

        May raise: the utterance at which it does is set aside, and the others go on.
        """
