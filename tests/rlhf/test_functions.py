"""A reward of the user's own: a function and a line of configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tts_assets.core.config import ConfigError
from tts_assets.rlhf.assets import function_digests
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.reward_config import FunctionReward, RewardConfig
from tts_assets.rlhf.reward_executor import RewardExecutor, ThreadRunner
from tts_assets.rlhf.rewards import (
    DecodedCompletion,
    RewardError,
    UserRewardFunction,
    source_digest,
)

SOURCE = """
import numpy as np

def brightness(batch, above=1000):
    '''The share of the power above a frequency.'''
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
    """A module of a user, on the path."""
    name = f"own_rewards_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def recipe(*rewards: dict[str, object]) -> RlhfRecipe:
    values = {"base": "a", "prompts": {"texts": "x.txt"}, "rewards": list(rewards)}
    return RlhfRecipe.parse(values, "test")


def test_a_function_is_a_reward_by_its_name(
    module: str, sentences: list[DecodedCompletion]
) -> None:
    line = {"kind": "function", "call": f"{module}:brightness", "weight": 0.5}
    rewards: tuple[RewardConfig, ...] = recipe({"kind": "rate"}, line).rewards
    verdict = RewardExecutor(rewards, ThreadRunner(rewards, 1)).judge(sentences[:1])[0]
    assert list(verdict.rewards) == ["rate", "brightness"]
    assert 0 < verdict.rewards["brightness"] < 1
    total = verdict.rewards["rate"] + 0.5 * verdict.rewards["brightness"]
    assert verdict.total == pytest.approx(total)


def test_options_are_passed_on(module: str, sentences: list[DecodedCompletion]) -> None:
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
def test_what_is_no_reward_is_refused(
    module: str, sentences: list[DecodedCompletion], function: str, message: str
) -> None:
    with pytest.raises(RewardError, match=message):
        UserRewardFunction(FunctionReward(call=f"{module}:{function}"))(sentences)


@pytest.mark.parametrize(
    ("call", "message"),
    [("nowhere.at_all:f", "no module nowhere.at_all"), ("json:nothing", "no function 'nothing'")],
)
def test_a_function_that_is_not_there_is_named(call: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UserRewardFunction(FunctionReward(call=call))


def test_the_functions_source_is_part_of_the_fingerprint(module: str, tmp_path: Path) -> None:
    call = f"{module}:brightness"
    own = recipe({"kind": "function", "call": call})
    before = function_digests(own)
    assert before == {"functions": {call: source_digest(call)}}
    with (tmp_path / f"{module}.py").open("a") as source:
        source.write("VERSION = 2\n")
    assert function_digests(own) != before
    assert function_digests(recipe({"kind": "rate"})) == {}
