"""The formats of public models: the ids of the publishers' scripts, recognition, untouched rows.

The scripts are those named in ``formats.py``. They put lists of ids in the places of placeholder
tokens, or tokenize one string; both are done here on small tokenizers of the same structure.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import torch
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from tests.support.public_bases import (
    LLAMA_TEMPLATE,
    bytes_tokenizer,
    published,
    random_base,
)
from tts_assets.serving.verify import compare_transformers
from tts_assets.speechlm.config import BaseModel, VocabularyConfig
from tts_assets.speechlm.formats import (
    FORMATS,
    LLASA,
    NEUTTS,
    ORPHEUS,
    SpeechFormat,
    recognize,
)
from tts_assets.speechlm.model import SpeechLM, build
from tts_assets.speechlm.prompts import PromptError, PromptFormat
from tts_assets.speechlm.vocabulary import VocabularyError, extend_tokenizer, read_vocabulary

CODEBOOK = 40
TEXT = "Read this, please: seven lanterns."
CODES = [3, 39, 0, 3]
# How Llama 3 splits texts: llama_models/llama3/tokenizer.py.
LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def codebook(form: SpeechFormat) -> int:
    return sum(form.frame) or CODEBOOK


def opened(form: SpeechFormat) -> PromptFormat:
    tokenizer = published(form, codebook(form))
    before = tokenizer.get_vocab()
    vocabulary = extend_tokenizer(tokenizer, codebook(form), VocabularyConfig(), form.frame)
    assert tokenizer.get_vocab() == before and vocabulary.format is form
    assert vocabulary.size == len(before)  # not padded
    return PromptFormat(tokenizer, vocabulary)


def replaced(ids: list[int], place: int, by: list[int]) -> list[int]:
    """``ids`` with the one element ``place`` replaced by several."""
    index = ids.index(place)
    return [*ids[:index], *by, *ids[index + 1 :]]


def llasa_ids(tokenizer: Any, text: str, codes: list[int], whole: bool) -> list[int]:
    """The ids of LLaSA's scripts; ``whole``: training, else the prompt of inference."""
    number = tokenizer.convert_tokens_to_ids
    chat = [
        {"role": "user", "content": "Convert the text to speech:<|TEXT_UNDERSTANDING_START|>"},
        {"role": "assistant", "content": "<|SPEECH_GENERATION_START|>"},
    ]
    ids = tokenizer.apply_chat_template(
        chat,
        tokenize=True,
        return_dict=False,
        date_string="26 Jul 2024",
        continue_final_message=not whole,
    )
    spoken = f"<|TEXT_UNDERSTANDING_START|>{text}<|TEXT_UNDERSTANDING_END|>"
    speech = "<|SPEECH_GENERATION_START|>" + "".join(f"<|s_{code}|>" for code in codes)
    speech += "<|SPEECH_GENERATION_END|>" if whole else ""
    parts = [tokenizer.encode(part, add_special_tokens=False) for part in (spoken, speech)]
    ids = replaced(ids, number("<|TEXT_UNDERSTANDING_START|>"), parts[0])
    return replaced(ids, number("<|SPEECH_GENERATION_START|>"), parts[1])


def neutts_ids(tokenizer: Any, phonemes: str, codes: list[int], whole: bool) -> list[int]:
    """The ids of NeuTTS's scripts."""
    number = tokenizer.convert_tokens_to_ids
    chat = "user: Convert the text to speech:<|TEXT_REPLACE|>\nassistant:<|SPEECH_REPLACE|>"
    ids = tokenizer.encode(chat)
    text = tokenizer.encode(phonemes, add_special_tokens=False)
    text = [number("<|TEXT_PROMPT_START|>"), *text, number("<|TEXT_PROMPT_END|>")]
    speech = [number("<|SPEECH_GENERATION_START|>")]
    speech += [number(f"<|speech_{code}|>") for code in codes]
    speech += [number("<|SPEECH_GENERATION_END|>")] if whole else []
    ids = replaced(ids, number("<|TEXT_REPLACE|>"), text)
    return replaced(ids, number("<|SPEECH_REPLACE|>"), speech)


def test_llasa_has_the_ids_of_its_authors() -> None:
    prompts = opened(LLASA)
    tokenizer = prompts.tokenizer
    assert prompts.training(TEXT, CODES).tolist() == llasa_ids(tokenizer, TEXT, CODES, True)
    assert prompts.inference(TEXT).tolist() == llasa_ids(tokenizer, TEXT, [], False)
    voiced = prompts.inference(TEXT, prompt_text="A voice.", prompt_codes=CODES)
    assert voiced.tolist() == llasa_ids(tokenizer, f"A voice. {TEXT}", CODES, False)
    assert tokenizer.decode(prompts.after_speech) == "<|SPEECH_GENERATION_END|><|eot_id|>"


def test_neutts_has_the_ids_of_its_authors() -> None:
    prompts = opened(NEUTTS)
    tokenizer = prompts.tokenizer
    phonemes = "ɹˈiːd ðˈɪs, plˈiːz: sˈɛvən lˈæntɚnz."
    assert prompts.training(TEXT, CODES).tolist() == neutts_ids(tokenizer, phonemes, CODES, True)
    assert prompts.inference(TEXT).tolist() == neutts_ids(tokenizer, phonemes, [], False)
    voiced = prompts.inference(TEXT, prompt_text="A voice.", prompt_codes=CODES)
    both = f"ɐ vˈɔɪs. {phonemes}"
    assert voiced.tolist() == neutts_ids(tokenizer, both, CODES, False)


def orpheus_ids(tokenizer: Any, text: str, levels: list[list[int]], whole: bool) -> list[int]:
    """The ids of Orpheus's scripts for a prompt, and the codes of the three levels of SNAC."""
    base = tokenizer.convert_tokens_to_ids("<custom_token_0>")
    end_of_turn = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    ids = [base + 3, *tokenizer.encode(text), end_of_turn, base + 4, base + 5, base + 1]
    coarse, middle, fine = levels
    for i in range(len(coarse)):
        ids.append(coarse[i] + base + 10)
        ids.append(middle[2 * i] + base + 10 + 4096)
        ids.append(fine[4 * i] + base + 10 + 2 * 4096)
        ids.append(fine[4 * i + 1] + base + 10 + 3 * 4096)
        ids.append(middle[2 * i + 1] + base + 10 + 4 * 4096)
        ids.append(fine[4 * i + 2] + base + 10 + 5 * 4096)
        ids.append(fine[4 * i + 3] + base + 10 + 6 * 4096)
    return [*ids, base + 2, base + 6] if whole else ids


def test_orpheus_has_the_ids_of_its_authors() -> None:
    prompts = opened(ORPHEUS)
    tokenizer, frame = prompts.tokenizer, prompts.vocabulary.frame
    levels = [[7, 4095], [0, 1, 2, 3], [11, 12, 13, 14, 4095, 0, 5, 6]]
    frames = np.array([[7, 0, 11, 12, 1, 13, 14], [4095, 2, 4095, 0, 3, 5, 6]])
    codes = (frames + frame.bounds[:-1]).ravel()
    for name, said in (("", TEXT), ("tara", f"tara: {TEXT}")):
        whole = prompts.training(TEXT, codes, name)
        assert whole.tolist() == orpheus_ids(tokenizer, said, levels, True)
        asked = prompts.inference(TEXT, voice_description=name)
        assert asked.tolist() == orpheus_ids(tokenizer, said, [[], [], []], False)
    voiced = prompts.inference(
        TEXT, prompt_text="A voice.", prompt_codes=codes, voice_description="zoe"
    )
    assert voiced.tolist() == orpheus_ids(tokenizer, f"zoe: A voice. {TEXT}", levels, False)
    assert prompts.vocabulary.frame.problem(prompts.vocabulary.codes(whole)) == ""
    assert tokenizer.decode(prompts.after_speech) == "<custom_token_2><custom_token_6>"


def test_orpheus_takes_a_name_and_no_description() -> None:
    prompts = opened(ORPHEUS)
    for other in ("A calm woman.", "tara. Emotion: happy.", "no_", "a:b"):
        with pytest.raises(PromptError, match="a place for a speaker's name, not for"):
            prompts.inference(TEXT, voice_description=other)


def test_orpheus_needs_its_codec_and_llama() -> None:
    config, frame = VocabularyConfig(format="orpheus"), ORPHEUS.frame
    with pytest.raises(VocabularyError, match="this codec has one codebook"):
        extend_tokenizer(bytes_tokenizer(["<|end|>"]), CODEBOOK, config)
    with pytest.raises(
        VocabularyError, match=r"needs the tokens <\|begin_of_text\|>, <\|eot_id\|>"
    ):
        extend_tokenizer(bytes_tokenizer(["<|end|>"]), sum(frame), config, frame)
    with pytest.raises(VocabularyError, match="belongs to another codec"):
        extend_tokenizer(published(ORPHEUS, sum(frame)), 1024, VocabularyConfig(), ())


def llama_tokenizer(path: Path) -> tuple[PreTrainedTokenizerFast, tiktoken.Encoding]:
    """The tokenizer of Llama 3 from the file of ``llama-models``, here and as that package has it.

    Its 256 special tokens follow the text, with those of the chat template at their places.
    """
    ranks = load_tiktoken_bpe(str(path))
    named = {0: "<|begin_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
    named |= {9: "<|eot_id|>"}
    special = [named.get(i, f"<|reserved_special_token_{i}|>") for i in range(256)]
    reference = tiktoken.Encoding(
        "llama3",
        pat_str=LLAMA_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={name: len(ranks) + i for i, name in enumerate(special)},
    )
    converter = TikTokenConverter(
        vocab_file=str(path), pattern=LLAMA_PATTERN, extra_special_tokens=special
    )
    tokenizer = converter.converted()
    bos = special[0]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=named[9], pad_token=named[9]
    )
    fast.chat_template = LLAMA_TEMPLATE
    return fast, reference


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_models") is None, reason="needs the package llama-models")
def test_llasa_has_its_published_ids_with_the_tokenizer_of_llama() -> None:
    """The ids are those of Llasa's repository; texts have the tokens of tiktoken."""
    spec = find_spec("llama_models")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    tokenizer, reference = llama_tokenizer(folder / "llama3" / "tokenizer.model")
    assert len(tokenizer) == 128_256
    tokenizer.add_tokens([*LLASA.control, *map(LLASA.code_token, range(65_536))])
    vocabulary = extend_tokenizer(tokenizer, 65_536, VocabularyConfig())
    assert vocabulary.format is LLASA and vocabulary.size == 193_800
    assert vocabulary.control["<|TEXT_GENERATION_START|>"] == 128_256
    assert vocabulary.speech_end == 128_261
    assert vocabulary.ids([0, 65_535]).tolist() == [128_264, 193_799]
    prompts = PromptFormat(tokenizer, vocabulary)
    for text in (TEXT, "Grüße aus 東京, it's 12,345 o'clock!", "  two  spaces\nand lines "):
        assert prompts.text_ids(text).tolist() == reference.encode_ordinary(text)
        assert prompts.training(text, CODES).tolist() == llasa_ids(tokenizer, text, CODES, True)
        assert prompts.inference(text).tolist() == llasa_ids(tokenizer, text, [], False)
    ids = prompts.inference(TEXT)
    assert ids[0] == 128_000 and ids[-1] == 128_260


@pytest.mark.parametrize("name", FORMATS)
def test_a_bare_base_takes_any_format(name: Any) -> None:
    form = FORMATS[name]
    bos, *more = form.requires or ("<|begin|>", "<|end|>")
    tokenizer = bytes_tokenizer([bos, *more], bos, LLAMA_TEMPLATE)
    assert recognize(tokenizer.get_vocab()) is None
    config = VocabularyConfig(format=name)
    vocabulary = extend_tokenizer(tokenizer, codebook(form), config, form.frame)
    assert vocabulary.format is form and vocabulary.size % 64 == 0
    prompts = PromptFormat(tokenizer, vocabulary)
    ids = prompts.training(TEXT, CODES)
    assert tokenizer.decode(ids).count(bos) == 1
    start = ids.tolist().index(vocabulary.speech_start)
    assert vocabulary.codes(ids).tolist() == CODES
    assert ids[start + 1 + len(CODES)] == vocabulary.speech_end
    other = next(one for one in FORMATS if one != name)
    with pytest.raises(VocabularyError, match=f"trained with the format '{name}'"):
        extend_tokenizer(tokenizer, codebook(form), VocabularyConfig(format=other), form.frame)


def test_a_format_without_a_place_for_a_description_refuses_one() -> None:
    prompts = opened(LLASA)
    with pytest.raises(PromptError, match="'llasa' has no place for a voice description"):
        prompts.inference(TEXT, voice_description="A calm woman.")


def test_another_codec_is_refused() -> None:
    with pytest.raises(VocabularyError, match="lacks 1 tokens of a codec of 41 codes"):
        read_vocabulary(published(LLASA, CODEBOOK), CODEBOOK + 1)
    with pytest.raises(VocabularyError, match="more speech tokens"):
        read_vocabulary(published(NEUTTS, CODEBOOK), CODEBOOK - 1)
    with pytest.raises(VocabularyError, match="no known format"):
        read_vocabulary(bytes_tokenizer(["<|end|>"]), CODEBOOK)


@pytest.mark.parametrize(
    "form", [LLASA, NEUTTS, pytest.param(ORPHEUS, marks=pytest.mark.slow)], ids=lambda one: one.name
)
def test_opening_a_public_base_changes_nothing(form: SpeechFormat, tmp_path: Path) -> None:
    size = codebook(form)
    tokenizer = published(form, size)
    rows = len(tokenizer) + 23  # more rows than tokens, and no multiple of 64
    weights = random_base(tmp_path, tokenizer, rows)
    lm = build(BaseModel(hub=str(tmp_path)), size, VocabularyConfig(), 1, form.frame)
    found = lm.model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    lm.save(tmp_path / "saved")
    again = SpeechLM.load(tmp_path / "saved", size)
    assert again.vocabulary.format is form
    agreement = compare_transformers(
        tmp_path / "saved", tmp_path / "saved", size, [TEXT, "Yes."], 12
    )
    assert agreement.holds and agreement.prompts_equal


def test_only_added_rows_are_drawn(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(["<|begin|>", "<|end|>"], "<|begin|>")
    known = len(tokenizer)
    rows = known + 400  # room beyond all new tokens
    weights = random_base(tmp_path, tokenizer, rows)
    lm = build(BaseModel(hub=str(tmp_path)), CODEBOOK, VocabularyConfig(), seed=1)
    before = weights["model.embed_tokens.weight"]
    after = lm.model.state_dict()["model.embed_tokens.weight"]
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == list(range(known, lm.vocabulary.size))


def test_holes_in_the_ids_of_a_tokenizer_are_refused(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {symbol: 2 * index for index, symbol in enumerate(alphabet)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=known, merges=[])), eos_token="<|end|>"
    )
    with pytest.raises(VocabularyError, match="have holes"):
        extend_tokenizer(tokenizer, CODEBOOK, VocabularyConfig())


def test_the_authors_learning_rate_is_named() -> None:
    assert "llasa train with the learning rate 1e-05 (this recipe: 0.003)" in LLASA.advice(3e-3)
    assert "top_k 50, min_tokens 50" in NEUTTS.advice(4e-5)
    assert FORMATS["plain"].advice(1e-4) == ""
