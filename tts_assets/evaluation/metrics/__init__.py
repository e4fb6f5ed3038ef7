"""The base class of metrics, and the metrics of a configuration.

A metric of another project is a subclass of :class:`Metric` in any importable module. The
configuration names it::

    [evaluation]
    metrics = ["words", "dnsmos", "my_package.brightness:Brightness"]

Results are cached by the digest of the audio, the metric's name and version, and its
:meth:`~Metric.key`. Raise ``version`` when the numbers change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Literal

from tts_assets.audio_models.wer import TextMatch
from tts_assets.core.audio import Wave
from tts_assets.core.config import ConfigError
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.suite import SuiteText

PACKAGE = "tts_assets.evaluation.metrics"
OWN_METRICS = {
    "words": f"{PACKAGE}.text:Words",
    "seed_wer": f"{PACKAGE}.text:SeedWer",
    "dnsmos": f"{PACKAGE}.quality:Dnsmos",
    "distillmos": f"{PACKAGE}.quality:DistillMos",
    "utmos": f"{PACKAGE}.quality:Utmos",
    "watermark": f"{PACKAGE}.quality:Watermark",
    "similarity": f"{PACKAGE}.quality:Similarity",
    "pitch": f"{PACKAGE}.quality:Pitch",
    "pace": f"{PACKAGE}.quality:Pace",
    "truncation": f"{PACKAGE}.text:Truncation",
}


@dataclass(frozen=True)
class Column:
    """One number of a metric: its title, description, unit, and which direction is better.

    ``weight``: the total of a set is the mean over utterances; with ``words`` or ``characters``
    each utterance has that weight, so that the total is a rate. ``shown``: the table of utterances
    has this column. ``short``: the title in tables. ``smallest``: the smallest difference of two
    models that matters; summaries name no smaller one.
    """

    name: str
    title: str
    about: str
    better: Literal["low", "high", ""] = ""
    weight: Literal["", "words", "characters"] = ""
    unit: Literal["", "%", "Hz", "s", "words", "words/s", "semitones"] = ""
    digits: int = 2
    shown: bool = False
    short: str = ""
    smallest: float = 0.0

    def text(self, value: float) -> str:
        """A value with its unit; fractions in per cent."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def number(self, value: float) -> str:
        """A value without its unit; a whole number of words has no decimal digits."""
        scaled = 100 * value if self.unit == "%" else value
        digits = 0 if self.unit == "words" and value == int(value) else self.digits
        return f"{scaled:.{digits}f}"

    @property
    def head(self) -> str:
        """The heading of a table column."""
        title = self.short or self.title
        return f"{title}, {self.unit}" if self.unit not in ("", "words") else title

    def range(self, low: float, high: float) -> str:
        """An interval with its unit."""
        return f"{self.number(low)} to {self.text(high)}"

    def signed(self, difference: float) -> str:
        """A difference with its sign and unit; of fractions in percentage points."""
        return f"{self._change(difference)} {self._change_unit}".rstrip()

    def signed_range(self, low: float, high: float) -> str:
        """An interval of a difference with signs and unit."""
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
    """A synthesis with its text and ASR transcript.

    ``wave``: mono float32 (samples,) at ``rate`` Hz; 0 samples if the model generated no audio.
    ``digest``: SHA-256 of the audio file, empty without audio. ``ended``: the model ended the
    synthesis itself, before the token limit. ``match``: the alignment of text and transcript.
    """

    text: SuiteText
    wave: Wave
    rate: int
    digest: str
    ended: bool
    transcript: str
    match: TextMatch

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.wave) / self.rate


@dataclass(frozen=True)
class Unmeasured:
    """No value, and the reason: a short text that is the same for all utterances of a kind."""

    reason: str


Values = dict[str, float]
"""By column."""


@dataclass(frozen=True)
class Setting:
    """What a metric may need beside the utterance; see ``EvaluationProgram``."""

    config: EvaluationConfig
    references: tuple[Path, ...] = ()
    speakers: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    characters_per_second: float = 0.0


class Metric(ABC):
    """Numbers of utterances. A process creates it once, when it is first needed."""

    name: ClassVar[str]
    version: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @classmethod
    def missing(cls, config: EvaluationConfig) -> str:
        """Why the metric cannot be measured with this configuration; empty if it can."""
        return ""

    def key(self, utterance: Utterance) -> str | None:
        """What determines the values beside the audio; None if they are not worth caching."""
        return ""

    @abstractmethod
    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        """The values of each utterance by column, or the reason why there are none.

        It may raise any exception: then only the utterance that causes it has no value.
        """


def metrics_of(config: EvaluationConfig) -> list[type[Metric]]:
    """The metrics of a configuration that can be measured.

    Raises :class:`ConfigError` for unknown names, two metrics with the same column, or without
    the metric ``words``.
    """
    return [metric for metric in _named(config) if not metric.missing(config)]


def not_given(config: EvaluationConfig) -> dict[str, str]:
    """The metrics that cannot be measured, and why."""
    reasons = {metric.name: metric.missing(config) for metric in _named(config)}
    return {name: reason for name, reason in reasons.items() if reason}


def columns_of(config: EvaluationConfig) -> list[Column]:
    """The columns of all metrics that can be measured."""
    return [column for metric in metrics_of(config) for column in metric.columns]


def metric_of_columns(config: EvaluationConfig) -> dict[str, str]:
    """The name of the metric that each column belongs to."""
    return {column.name: metric.name for metric in metrics_of(config) for column in metric.columns}


def load(name: str) -> type[Metric]:
    """A metric of this project by name, or any other by ``package.module:Class``.

    Raises :class:`ConfigError` if there is no such metric.
    """
    module, _, attribute = OWN_METRICS.get(name, name).partition(":")
    if not attribute:
        raise ConfigError(
            f"evaluation.metrics: no metric {name!r}; known: {sorted(OWN_METRICS)}, "
            "or your own as 'package.module:Class'"
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"evaluation.metrics: {name!r} cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Metric)):
        raise ConfigError(f"evaluation.metrics: {name!r} is no subclass of {PACKAGE}.metric:Metric")
    return found


def _named(config: EvaluationConfig) -> Sequence[type[Metric]]:
    metrics = [load(name) for name in config.metrics]
    names = [column.name for metric in metrics for column in metric.columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"evaluation.metrics: two metrics have {sorted(twice)}; remove one")
    if "wer" not in names:
        raise ConfigError("evaluation.metrics: 'words' must be among them: reports need the WER")
    return metrics
