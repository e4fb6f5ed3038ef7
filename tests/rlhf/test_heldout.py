"""Held-out prompts are chosen by the hash of their text alone."""

from __future__ import annotations

import pytest

from tts_assets.rlhf.config import HeldOutConfig
from tts_assets.rlhf.prompts import PromptError, RolloutPrompt
from tts_assets.rlhf.rollouts import hold_out

DIGITS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
PROMPTS = [RolloutPrompt(text=f"{a} {b} {c}") for a in DIGITS for b in DIGITS for c in DIGITS]
CONFIG = HeldOutConfig(fraction=0.1, prompts=100)


def texts(prompts: list[RolloutPrompt]) -> set[str]:
    return {prompt.text for prompt in prompts}


def test_the_fraction_is_held_out_and_no_prompt_is_lost() -> None:
    training, held_out = hold_out(PROMPTS, CONFIG)
    assert 30 < len(held_out) < 75
    assert texts(training).isdisjoint(texts(held_out))
    assert texts(training) | texts(held_out) == texts(PROMPTS)
    assert training == [prompt for prompt in PROMPTS if prompt.text in texts(training)]


def test_the_choice_ignores_order_and_other_prompts() -> None:
    held_out = hold_out(PROMPTS, CONFIG)[1]
    assert hold_out(PROMPTS[::-1], CONFIG)[1] == held_out
    few = hold_out(PROMPTS[:100], CONFIG)[1]
    assert texts(few) == texts(held_out) & texts(PROMPTS[:100])


def test_equal_texts_are_held_out_together() -> None:
    text = hold_out(PROMPTS, CONFIG)[1][0].text
    again = [RolloutPrompt(text=text.upper() + "!"), RolloutPrompt(text=text)]
    training, held_out = hold_out([*PROMPTS, *again], CONFIG)
    assert texts(training).isdisjoint({prompt.text for prompt in again})
    assert len(held_out) == len(hold_out(PROMPTS, CONFIG)[1])


def test_the_number_of_held_out_prompts_is_limited() -> None:
    training, held_out = hold_out(PROMPTS, CONFIG.model_copy(update={"prompts": 5}))
    assert len(held_out) == 5
    assert len(training) == len(PROMPTS) - 5


def test_fraction_zero_holds_out_no_prompt() -> None:
    assert hold_out(PROMPTS, HeldOutConfig(fraction=0)) == (PROMPTS, [])


def test_holding_out_all_prompts_is_an_error() -> None:
    with pytest.raises(PromptError, match="all 1 prompts are held out"):
        hold_out(PROMPTS[:1], HeldOutConfig(fraction=0.999))
