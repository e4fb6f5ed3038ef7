"""Metrics by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from tts_assets.core.config import ConfigError
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.metrics.metric import Column, Metric

HERE = "tts_assets.evaluation.metrics"
OURS = {
    "words": f"{HERE}.text:Words",
    "dnsmos": f"{HERE}.quality:Dnsmos",
    "utmos": f"{HERE}.quality:Utmos",
    "similarity": f"{HERE}.quality:Similarity",
    "pitch": f"{HERE}.prosody:Pitch",
    "pace": f"{HERE}.prosody:Pace",
    "truncation": f"{HERE}.text:Truncation",
}


def metrics_of(config: EvaluationConfig) -> list[type[Metric]]:
    """The metrics of a configuration that can be measured. Raises :class:`ConfigError`."""
    return [metric for metric in _named(config) if not metric.missing(config)]


def not_given(config: EvaluationConfig) -> dict[str, str]:
    """The metrics that cannot be measured, and why."""
    reasons = {metric.name: metric.missing(config) for metric in _named(config)}
    return {name: reason for name, reason in reasons.items() if reason}


def columns_of(config: EvaluationConfig) -> list[Column]:
    return [column for metric in metrics_of(config) for column in metric.columns]


def metric_of_columns(config: EvaluationConfig) -> dict[str, str]:
    """By column, the metric that gives it."""
    return {column.name: metric.name for metric in metrics_of(config) for column in metric.columns}


def load(name: str) -> type[Metric]:
    """A metric of ours by name, or any by ``package.module:Class``."""
    module, _, attribute = OURS.get(name, name).partition(":")
    if not attribute:
        raise ConfigError(
            f"evaluation.metrics: no metric {name!r}; known: {sorted(OURS)}, "
            "or one of your own as 'package.module:Class'"
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"evaluation.metrics: {name!r} cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Metric)):
        raise ConfigError(f"evaluation.metrics: {name!r} is no subclass of {HERE}.metric:Metric")
    return found


def _named(config: EvaluationConfig) -> Sequence[type[Metric]]:
    metrics = [load(name) for name in config.metrics]
    names = [column.name for metric in metrics for column in metric.columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"evaluation.metrics: two metrics give {sorted(twice)}; drop one")
    if "wer" not in names:
        raise ConfigError("evaluation.metrics: 'words' must be among them: reports show them")
    return metrics
