from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tts_assets.speechlm.config import VocabularyConfig
from tts_assets.speechlm.formats import INWORLD, LLASA
from tts_assets.speechlm.vocabulary import (
    NONVERBALS,
    VocabularyError,
    byte_tokenizer,
    extend_tokenizer,
    load_tokenizer,
    read_vocabulary,
)

LEXICOGRAPHIC = VocabularyConfig(order="lexicographic")


def base_of(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``size`` plain tokens: for sizes and ids, its words do not matter."""
    vocabulary = {f"word{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="word1", pad_token="word1")


@pytest.mark.parametrize("order", ["numeric", "lexicographic"])
def test_llama_3_with_the_published_codec_has_193856_tokens(order: str) -> None:
    tokenizer = base_of(128_256)
    vocabulary = extend_tokenizer(tokenizer, 65_536, VocabularyConfig(order=order))
    assert vocabulary.size == len(tokenizer) == 193_856
    names = tokenizer.get_vocab()
    assert names["<|extra_token_0|>"] == 193_800 and names["<|extra_token_55|>"] == 193_855
    assert sorted(vocabulary.code_to_id.tolist() + list(vocabulary.control.values())) == list(
        range(128_256, 193_800)
    )


def test_llasa_keeps_its_193800_tokens() -> None:
    """Its eight own control tokens, then the speech tokens from 128,264 on, in numeric order."""
    tokenizer = base_of(128_256)
    names = [*LLASA.control, *map(LLASA.code_token, range(65_536))]
    tokenizer.add_tokens(names, special_tokens=True)
    vocabulary = extend_tokenizer(tokenizer, 65_536, LEXICOGRAPHIC)
    assert vocabulary.code_to_id.tolist() == list(range(128_264, 193_800))
    assert list(vocabulary.control.values()) == list(range(128_256, 128_264))
    assert vocabulary.speech_end == 128_261
    assert vocabulary.size == len(tokenizer) == 193_800


def test_lexicographic_ids_are_those_of_python_sorted() -> None:
    tokenizer = base_of(1000)
    vocabulary = extend_tokenizer(tokenizer, 200, LEXICOGRAPHIC)
    names = sorted([*INWORLD.control, *(f"<|s_{i}|>" for i in range(200))])
    assert [tokenizer.convert_tokens_to_ids(n) for n in names] == list(range(1000, 1208))
    by_id = [f"<|s_{code}|>" for code in vocabulary.codes(np.arange(1000, 1208))]
    assert by_id[:4] == ["<|s_0|>", "<|s_100|>", "<|s_101|>", "<|s_102|>"]
    assert by_id == sorted(by_id)


def test_numeric_ids_are_contiguous() -> None:
    vocabulary = extend_tokenizer(base_of(1000), 200, VocabularyConfig())
    assert np.array_equal(np.diff(vocabulary.code_to_id), np.ones(199))


@pytest.mark.parametrize("order", ["numeric", "lexicographic"])
def test_lookup_agrees_with_the_tokenizer_and_inverts(order: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(128)
    vocabulary = extend_tokenizer(tokenizer, 512, VocabularyConfig(order=order))
    codes = np.array([0, 1, 9, 10, 99, 100, 511], dtype=np.uint16)
    names = [INWORLD.code_token(int(code)) for code in codes]
    assert vocabulary.ids(codes).tolist() == tokenizer.convert_tokens_to_ids(names)
    mixed = np.concatenate([[vocabulary.speech_start], vocabulary.ids(codes), [3]])
    assert np.array_equal(vocabulary.codes(mixed), codes)
    tokenizer.save_pretrained(tmp_path)
    again = read_vocabulary(load_tokenizer(str(tmp_path)), 512)
    assert again == vocabulary and again.digest == vocabulary.digest


def test_the_digest_depends_on_the_order() -> None:
    numeric = extend_tokenizer(byte_tokenizer(64), 64, VocabularyConfig())
    lexicographic = extend_tokenizer(byte_tokenizer(64), 64, LEXICOGRAPHIC)
    assert numeric.size == lexicographic.size
    assert numeric.digest != lexicographic.digest


def test_nonverbals_are_added_on_request_only() -> None:
    plain, tagged = byte_tokenizer(64), byte_tokenizer(64)
    extend_tokenizer(plain, 64, VocabularyConfig())
    extend_tokenizer(tagged, 64, VocabularyConfig(nonverbals=True))
    assert len(NONVERBALS) == 21
    assert len(plain("<laugh>")["input_ids"]) == len("<laugh>")
    assert tagged("<laugh>")["input_ids"] == [tagged.convert_tokens_to_ids("<laugh>")]
    inside = tagged("so <clear_throat>what")["input_ids"]
    assert inside == [*plain("so ")["input_ids"], inside[3], *plain("what")["input_ids"]]
    assert tagged.decode(inside) == "so <clear_throat>what"


def test_a_codec_of_another_size_is_named() -> None:
    tokenizer = byte_tokenizer(64)
    vocabulary = extend_tokenizer(tokenizer, 64, VocabularyConfig())
    with pytest.raises(VocabularyError, match=r"lacks 64 tokens .* first is <\|s_64\|>"):
        read_vocabulary(tokenizer, 128)
    with pytest.raises(VocabularyError, match="more speech tokens than the codec's 32"):
        read_vocabulary(tokenizer, 32)
    with pytest.raises(VocabularyError, match="code 64 is outside the codebook of 64"):
        vocabulary.ids(np.array([3, 64]))


def test_files_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    numeric = extend_tokenizer(byte_tokenizer(64), 64, VocabularyConfig())
    numeric.save(tmp_path)
    numeric.check(tmp_path)
    other = extend_tokenizer(byte_tokenizer(64), 64, LEXICOGRAPHIC)
    with pytest.raises(VocabularyError, match="do not belong together"):
        other.check(tmp_path)
