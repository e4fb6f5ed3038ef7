"""Vocabularies with phonemes or a lexicon: ids, saved models, voice prompts, and conversions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tts_assets.corpora.config import TextConfig
from tts_assets.corpora.text import Lexicon, Normalizer
from tts_assets.serving.verify import compare_transformers
from tts_assets.speechlm.config import LlamaSize, TokenizerConfig, VocabularyConfig
from tts_assets.speechlm.model import SpeechLM, new_llama
from tts_assets.speechlm.prompts import PromptFormat, open_tokenizer
from tts_assets.speechlm.vocabulary import (
    VocabularyError,
    byte_tokenizer,
    declare_lexicon,
    extend_tokenizer,
    phonemes_of,
    tokenizer_digest,
)

CODEBOOK = 64
ENGLISH = VocabularyConfig(phonemes="en", nonverbals=True)


@pytest.fixture(scope="module")
def lm() -> SpeechLM:
    size = LlamaSize(hidden_size=32, intermediate_size=64, layers=2, heads=2, kv_heads=2)
    return new_llama(size, CODEBOOK, ENGLISH, seed=0)


@pytest.fixture(scope="module")
def prompts(lm: SpeechLM) -> PromptFormat:
    return PromptFormat(lm.tokenizer, lm.vocabulary)


def test_each_phoneme_is_one_token(prompts: PromptFormat) -> None:
    ids = prompts.text_ids("Hello, world!")
    assert len(ids) == len("həlˈoʊ, wˈɜːld!")
    assert prompts.tokenizer.decode(ids) == "həlˈoʊ, wˈɜːld!"
    assert prompts.plain_ids("Hello").tolist() != prompts.text_ids("Hello").tolist()


def test_tags_are_kept_and_text_never_makes_control_tokens(prompts: PromptFormat) -> None:
    tag = prompts.tokenizer.get_vocab()["<laugh>"]
    ids = prompts.text_ids("Well <laugh> yes <|speech_end|> no")
    assert ids.tolist().count(tag) == 1
    assert not set(ids.tolist()) & set(prompts.vocabulary.control.values())
    words = [prompts.tokenizer.decode(prompts.text_ids(word)) for word in ("Well", "yes")]
    assert prompts.tokenizer.decode(ids).startswith(f"{words[0]} <laugh> {words[1]}")


def test_a_voice_prompt_continues_as_in_training(prompts: PromptFormat) -> None:
    texts, codes = ("We saw the", "apple on the table."), [3, 4, 5]
    first, later = prompts.text_batch([texts[0], f" {texts[1]}"])
    head = prompts.head(np.concatenate([first, later]))
    expected = [*head.tolist(), *prompts.vocabulary.ids(codes).tolist()]
    found = prompts.inference(texts[1], prompt_text=texts[0], prompt_codes=codes)
    assert found.tolist() == expected


def test_a_saved_model_is_read_as_it_was_trained(lm: SpeechLM, tmp_path: Path) -> None:
    lm.save(tmp_path)
    again = SpeechLM.load(tmp_path, CODEBOOK)
    assert phonemes_of(again.tokenizer) == "en"
    text = "The apple is on the table."
    assert (
        PromptFormat(again.tokenizer, again.vocabulary).text_ids(text).tolist()
        == PromptFormat(lm.tokenizer, lm.vocabulary).text_ids(text).tolist()
    )
    assert tokenizer_digest(again.tokenizer) == tokenizer_digest(lm.tokenizer)
    opened = open_tokenizer(TokenizerConfig(hub=None, vocabulary=ENGLISH), CODEBOOK)
    assert tokenizer_digest(opened.tokenizer) == tokenizer_digest(lm.tokenizer)
    report = compare_transformers(tmp_path, tmp_path, CODEBOOK, [text, "Hello."], 8)
    assert report.prompts_equal


def test_units_are_part_of_the_identity(tmp_path: Path) -> None:
    digests = set()
    for config in (VocabularyConfig(), ENGLISH, VocabularyConfig(phonemes="de", nonverbals=True)):
        tokenizer = byte_tokenizer(128, config.phonemes is not None)
        extend_tokenizer(tokenizer, CODEBOOK, config)
        digests.add(tokenizer_digest(tokenizer))
    assert len(digests) == 3
    with pytest.raises(VocabularyError, match="the base reads phonemes of de"):
        extend_tokenizer(tokenizer, CODEBOOK, ENGLISH)
    characters = byte_tokenizer(128)
    extend_tokenizer(characters, CODEBOOK, VocabularyConfig())
    with pytest.raises(VocabularyError, match="the base reads characters"):
        extend_tokenizer(characters, CODEBOOK, ENGLISH)


def test_the_key_changes_no_earlier_fingerprint() -> None:
    assert VocabularyConfig().canonical() == {"order": "numeric", "nonverbals": False}
    assert ENGLISH.canonical()["phonemes"] == "en"
    plain = TokenizerConfig(hub=None, vocabulary=VocabularyConfig())
    assert "lexicon" not in plain.canonical()
    changed = plain.model_copy(update={"lexicon": LEXICON})
    assert changed.canonical()["lexicon"] == LEXICON


LEXICON = {
    "worcester": "wooster /wˈʊstɚ/",
    "SQL": "sequel",
    "NVIDIA": "Envidia",
    "Größe": "Grösse",
    "重庆": "崇庆",
    "laugh": "larf",
}


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("Worcester, in worcester.", "Wooster, in wooster."),
        ("Worcester's and Non-Worcester", "Wooster's and Non-Wooster"),
        ("Worcestershire", "Worcestershire"),
        ("SQL and sql", "sequel and sql"),
        ("NVIDIA", "Envidia"),
        ("Die Größe zählt", "Die Grösse zählt"),
        ("我在重庆工作", "我在崇庆工作"),
        ("They <laugh> and laugh", "They <laugh> and larf"),
        (" Worcester", " Wooster"),
    ],
)
def test_words_are_respelled(text: str, spelled: str) -> None:
    written = Normalizer(TextConfig())(text, "en")
    leading = " " * text.startswith(" ")
    assert Lexicon(LEXICON).respelled([leading + written, "nothing"]) == [spelled, "nothing"]


def test_words_have_their_own_phonemes(prompts: PromptFormat) -> None:
    tokenizer = byte_tokenizer(128, phonemes=True)
    extend_tokenizer(tokenizer, CODEBOOK, ENGLISH)
    entries = {"worcester": "/ˈabc/", "SQL": "sequel", "table": "chair /tˈɛst/"}
    own = PromptFormat(tokenizer, declare_lexicon(tokenizer, CODEBOOK, entries))
    texts = [
        "I saw Worcester, then the apple.",
        "Worcester-based (table)!",
        "SQL <laugh> Worcester.",
        " The table's legs",
        "No entry at all.",
    ]
    plain = dict(zip(texts, prompts.units(texts), strict=True))
    chairs, sequel = prompts.units(["The chair's legs", "sequel"])
    assert own.units(texts) == [
        plain[texts[0]].replace("wˈʊstɚ", "ˈabc"),
        "ˈabcbˈeɪst (tˈɛst)!",
        f"{sequel} <laugh> ˈabc.",
        f" {chairs}",
        plain[texts[4]],
    ]


def test_entries_are_found_in_any_form_and_before_their_parts() -> None:
    entries = {"o\u2019reilly": "oh-rye-lee", "cafe\u0301": "kaffay"}
    entries |= {"well-known": "well-known", "known": "noun"}
    written = "O\u2019Reilly\u2019s cafe\u0301 is well-known, O\u2019Reilly"
    text = Normalizer(TextConfig())(written, "en")
    assert Lexicon(entries).respelled([text]) == ["O'Reilly's kaffay is well-known, Oh-rye-lee"]


def test_phonemes_between_brackets_and_quotes() -> None:
    tokenizer = byte_tokenizer(128, phonemes=True)
    extend_tokenizer(tokenizer, CODEBOOK, ENGLISH)
    own = PromptFormat(tokenizer, declare_lexicon(tokenizer, CODEBOOK, {"worcester": "/ˈabc/"}))
    texts = ["(Worcester)", "“Worcester”…", "(<laugh>)", "- Worcester!"]
    assert own.units(texts) == ["(ˈabc)", "“ˈabc”…", "( <laugh> )", "ˈabc!"]


def test_the_lexicon_belongs_to_the_saved_model(tmp_path: Path) -> None:
    size = LlamaSize(hidden_size=32, intermediate_size=64, layers=2, heads=2, kv_heads=2)
    lm = new_llama(size, CODEBOOK, VocabularyConfig(), seed=0)
    before = lm.vocabulary.digest, tokenizer_digest(lm.tokenizer)
    lm.vocabulary = declare_lexicon(lm.tokenizer, CODEBOOK, {"SQL": "sequel"})
    assert lm.vocabulary.digest != before[0] and tokenizer_digest(lm.tokenizer) != before[1]
    lm.save(tmp_path)
    again = SpeechLM.load(tmp_path, CODEBOOK)
    prompts = PromptFormat(again.tokenizer, again.vocabulary)
    assert again.vocabulary == lm.vocabulary
    assert prompts.text_ids("We use SQL").tolist() == prompts.plain_ids("We use sequel").tolist()
    assert compare_transformers(tmp_path, tmp_path, CODEBOOK, ["We use SQL"], 4).prompts_equal
    kept = declare_lexicon(again.tokenizer, CODEBOOK, {})
    assert kept == lm.vocabulary, "a project without a lexicon keeps that of its base"
    opened = open_tokenizer(
        TokenizerConfig(hub=None, vocabulary=VocabularyConfig(), lexicon={"SQL": "sequel"}),
        CODEBOOK,
    )
    assert tokenizer_digest(opened.tokenizer) == tokenizer_digest(lm.tokenizer)
    declare_lexicon(again.tokenizer, CODEBOOK, {"SQL": "S Q L"})
    again.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(VocabularyError, match="do not belong together"):
        SpeechLM.load(tmp_path, CODEBOOK)


def test_phonemes_alone_are_refused_where_characters_are_read() -> None:
    tokenizer = byte_tokenizer(128)
    extend_tokenizer(tokenizer, CODEBOOK, VocabularyConfig())
    with pytest.raises(VocabularyError, match="such as 'x': write a respelling before the phone"):
        declare_lexicon(tokenizer, CODEBOOK, {"x": "/ˈɛks/", "y": "why /wˈaɪ/"})
