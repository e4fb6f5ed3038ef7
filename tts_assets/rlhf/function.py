"""Rewards that are functions of the user: found by name, checked, and part of the fingerprint."""

from __future__ import annotations

import importlib
import importlib.util
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tts_assets.artifacts import sha256_file
from tts_assets.config import ConfigError
from tts_assets.rlhf.reward_config import FunctionReward
from tts_assets.rlhf.spoken import Score, Spoken


class RewardError(RuntimeError):
    """A reward that cannot be had: the message names the reward, and what it was asked to judge."""


class FunctionScorer:
    """Calls the function of a config, one thread at a time, and refuses what is no reward."""

    def __init__(self, config: FunctionReward) -> None:
        self.config = config
        self.function = find_function(config.call)
        self._lock = threading.Lock()

    def __call__(self, spoken: Sequence[Spoken]) -> list[Score]:
        with self._lock:
            found = self._called(spoken)
        if len(found) != len(spoken):
            raise RewardError(
                f"{self.config.call} returned {len(found)} scores for {len(spoken)} completions"
            )
        return [self._checked(value, one) for value, one in zip(found, spoken, strict=True)]

    def _called(self, spoken: Sequence[Spoken]) -> list[Any]:
        try:
            return list(self.function(list(spoken), **self.config.options))
        except Exception as error:
            texts = ", ".join(repr(one.text) for one in spoken)
            raise RewardError(f"{self.config.call} failed ({error!r}) at {texts}") from error

    def _checked(self, value: Any, spoken: Spoken) -> Score:
        score = float(value)
        if math.isnan(score) or not 0 <= score <= 1:
            raise RewardError(
                f"{self.config.call} returned {value!r} for {spoken.text!r}: a reward is a number "
                "from 0 to 1, clip or scale it in the function"
            )
        return Score(score)


def find_function(call: str) -> Callable[..., Sequence[float]]:
    """``package.module:function``; raises :class:`ConfigError` if there is none."""
    module, _, name = call.partition(":")
    source_file(call)
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise ConfigError(f"reward {call}: {module} has no function {name!r}")
    return function


def source_digest(call: str) -> str:
    """SHA-256 of the file of the function's module; what that imports does not count."""
    return sha256_file(source_file(call))


def source_file(call: str) -> Path:
    """The file of the function's module, without running it (only the packages around it)."""
    module = call.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(
            f"reward {call}: there is no module {module}; it must be installed, or lie below the "
            "folder from which Dagster is started"
        )
    return Path(spec.origin)
