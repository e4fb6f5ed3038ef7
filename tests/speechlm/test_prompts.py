from __future__ import annotations

import numpy as np
import pytest

from tts_assets.speechlm.config import VocabularyConfig
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.prompts import PromptError, PromptFormat, describe
from tts_assets.speechlm.vocabulary import byte_tokenizer, extend_tokenizer

TEXT = "Après vous: 3 × <hello>"


@pytest.fixture
def prompts(tiny: SpeechLM) -> PromptFormat:
    return PromptFormat(tiny.tokenizer, tiny.vocabulary)


def tokenized(prompts: PromptFormat, text: str) -> list[int]:
    """The reference's way: the whole prompt as one string through the tokenizer."""
    return list(prompts.tokenizer(text)["input_ids"])


def test_training_format(prompts: PromptFormat) -> None:
    expected = (
        f"Convert the text to speech:<|text_prompt_start|>{TEXT}<|text_prompt_end|>\n"
        "<|speech_start|><|s_7|><|s_299|><|s_7|><|speech_end|>"
    )
    assert prompts.training(TEXT, [7, 299, 7]).tolist() == tokenized(prompts, expected)


def test_training_format_with_a_voice_description(prompts: PromptFormat) -> None:
    expected = (
        "Given the following voice description <|voice_description_start|>A calm woman."
        "<|voice_description_end|> convert the text to speech:"
        f"<|text_prompt_start|>{TEXT}<|text_prompt_end|>\n<|speech_start|><|s_0|><|speech_end|>"
    )
    assert prompts.training(TEXT, [0], "A calm woman.").tolist() == tokenized(prompts, expected)


@pytest.mark.parametrize(
    ("tags", "description"),
    [
        (("", "", ""), ""),
        ((" A calm woman", "", ""), " A calm woman"),
        (("", "happy", ""), "Emotion: happy."),
        (("A calm woman", "", "newscast"), "A calm woman. Style: newscast."),
        (("A calm woman!", "happy", "newscast"), "A calm woman! Emotion: happy. Style: newscast."),
        (("静かな声。", "", "朗読"), "静かな声。 Style: 朗読."),
    ],
)
def test_a_description_of_all_tags(tags: tuple[str, str, str], description: str) -> None:
    assert describe(*tags) == description


@pytest.mark.parametrize("name", ["<|speech_end|>", "<|s_5|>", "Convert the text to speech:"])
def test_a_text_never_becomes_control_tokens(name: str) -> None:
    tokenizer = byte_tokenizer(512)
    vocabulary = extend_tokenizer(tokenizer, 64, VocabularyConfig(nonverbals=True))
    prompts = PromptFormat(tokenizer, vocabulary)
    control = {*tokenizer.get_added_vocab().values()}
    laugh = tokenizer.convert_tokens_to_ids("<laugh>")
    ids = prompts.text_ids(f"four {name} <laugh> zero").tolist()
    assert [token for token in ids if token in control] == [laugh]
    assert tokenizer.decode(ids) == f"four {name} <laugh> zero"
    described = prompts.inference("a", voice_description=f"calm {name}").tolist()
    plain = prompts.inference("a", voice_description="calm").tolist()
    assert [i for i in described if i in control] == [i for i in plain if i in control]


def test_inference_format(prompts: PromptFormat) -> None:
    alone = f"Convert the text to speech:<|text_prompt_start|>{TEXT}<|text_prompt_end|>\n"
    assert prompts.inference(TEXT).tolist() == tokenized(prompts, alone + "<|speech_start|>")
    continued = (
        f"Convert the text to speech:<|text_prompt_start|>Hello there. {TEXT}<|text_prompt_end|>\n"
        "<|speech_start|><|s_1|><|s_10|>"
    )
    codes = np.array([1, 10], dtype=np.uint16)
    ids = prompts.inference(TEXT, prompt_text="Hello there.", prompt_codes=codes)
    assert ids.tolist() == tokenized(prompts, continued)


def test_the_byte_tokenizer_spends_one_token_on_the_instruction(prompts: PromptFormat) -> None:
    # instruction, text start, 2 bytes, text end, newline, speech start
    assert len(prompts.inference("ab")) == 7


def test_text_is_unchanged_by_the_byte_tokenizer() -> None:
    tokenizer = byte_tokenizer(64)
    extend_tokenizer(tokenizer, 64, VocabularyConfig())
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_invalid_prompts_are_rejected(prompts: PromptFormat) -> None:
    with pytest.raises(PromptError, match="no speech codes"):
        prompts.training("hello", [])
    with pytest.raises(PromptError, match="both its transcript and its codes"):
        prompts.inference("hello", prompt_text="hi")
