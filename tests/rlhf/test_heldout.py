"""Who is held out: by the text's hash alone."""

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


def test_the_share_is_held_out_and_nothing_is_lost() -> None:
    trained, held = hold_out(PROMPTS, CONFIG)
    assert 30 < len(held) < 75
    assert texts(trained).isdisjoint(texts(held))
    assert texts(trained) | texts(held) == texts(PROMPTS)
    assert trained == [prompt for prompt in PROMPTS if prompt.text in texts(trained)]


def test_order_and_other_prompts_do_not_matter() -> None:
    held = hold_out(PROMPTS, CONFIG)[1]
    assert hold_out(PROMPTS[::-1], CONFIG)[1] == held
    few = hold_out(PROMPTS[:100], CONFIG)[1]
    assert texts(few) == texts(held) & texts(PROMPTS[:100])


def test_the_same_words_are_held_out_together() -> None:
    text = hold_out(PROMPTS, CONFIG)[1][0].text
    again = [RolloutPrompt(text=text.upper() + "!"), RolloutPrompt(text=text)]
    trained, held = hold_out([*PROMPTS, *again], CONFIG)
    assert texts(trained).isdisjoint({prompt.text for prompt in again})
    assert len(held) == len(hold_out(PROMPTS, CONFIG)[1])


def test_no_more_than_asked_for_are_kept_from_training() -> None:
    trained, held = hold_out(PROMPTS, CONFIG.model_copy(update={"prompts": 5}))
    assert len(held) == 5
    assert len(trained) == len(PROMPTS) - 5


def test_no_fraction_holds_out_none() -> None:
    assert hold_out(PROMPTS, HeldOutConfig(fraction=0)) == (PROMPTS, [])


def test_something_must_be_left_to_train_on() -> None:
    with pytest.raises(PromptError, match="all 1 prompts are held out"):
        hold_out(PROMPTS[:1], HeldOutConfig(fraction=0.999))
