"""Reward functions of users: a Python function and a line of configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tts_assets.core.config import ConfigError
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.reward_config import FunctionReward, RewardConfig
from tts_assets.rlhf.reward_executor import RewardExecutor, ThreadRunner
from tts_assets.rlhf.rewards import (
    DecodedCompletion,
    RewardError,
    UserRewardFunction,
    function_digests,
    source_digest,
)

SOURCE = """
import numpy as np

def brightness(batch, above=1000):
    '''The part of the power above a frequency.'''
    shares = []
    for one in batch:
        power = np.abs(np.fft.rfft(one.wave)) ** 2
        frequencies = np.fft.rfftfreq(len(one.wave), 1 / one.rate)
        shares.append(power[frequencies > above].sum() / power.sum())
    return shares

def broken(batch):
    return [float("nan")] * len(batch)

def in_percent(batch):
    return [50] * len(batch)

def short(batch):
    return [0.5]

def failing(batch):
    return [one.loudness for one in batch]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module on the path."""
    name = f"own_rewards_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def recipe_with(*rewards: dict[str, object]) -> RlhfRecipe:
    values = {"base": "a", "prompts": {"texts": "x.txt"}, "rewards": list(rewards)}
    return RlhfRecipe.parse(values, "test")


def test_the_functions_name_is_the_rewards_name(
    module: str, sentences: list[DecodedCompletion]
) -> None:
    line = {"kind": "function", "call": f"{module}:brightness", "weight": 0.5}
    rewards: tuple[RewardConfig, ...] = recipe_with({"kind": "rate"}, line).rewards
    result = RewardExecutor(rewards, ThreadRunner(rewards, 1)).score(sentences[:1])[0]
    assert list(result.rewards) == ["rate", "brightness"]
    assert 0 < result.rewards["brightness"] < 1
    total = result.rewards["rate"] + 0.5 * result.rewards["brightness"]
    assert result.total == pytest.approx(total)


def test_options_are_keyword_arguments(module: str, sentences: list[DecodedCompletion]) -> None:
    low, high = (
        UserRewardFunction(FunctionReward(call=f"{module}:brightness", options={"above": hertz}))
        for hertz in (100, 4000)
    )
    assert low(sentences)[0].value > high(sentences)[0].value


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "broken returned nan"),
        ("in_percent", "in_percent returned 50 for .*a number from 0 to 1"),
        ("short", "short returned 1 scores for"),
        ("failing", "failing failed .*no attribute 'loudness'.* at 'Login incorrect"),
    ],
)
def test_invalid_results_are_rejected(
    module: str, sentences: list[DecodedCompletion], function: str, message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        UserRewardFunction(FunctionReward(call=f"{module}:{function}"))(sentences)


@pytest.mark.parametrize(
    ("call", "message"),
    [("nowhere.at_all:f", "no module nowhere.at_all"), ("json:nothing", "no function 'nothing'")],
)
def test_a_missing_function_is_an_error(call: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UserRewardFunction(FunctionReward(call=call))


def test_the_functions_source_is_part_of_the_fingerprint(module: str, tmp_path: Path) -> None:
    call = f"{module}:brightness"
    rewards = recipe_with({"kind": "function", "call": call}).rewards
    before = function_digests(rewards)
    assert before == {call: source_digest(call)}
    with (tmp_path / f"{module}.py").open("a") as source:
        source.write("VERSION = 2\n")
    assert function_digests(rewards) != before
    assert function_digests(recipe_with({"kind": "rate"}).rewards) == {}
