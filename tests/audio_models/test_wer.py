"""Normalization, alignment, error rates, and their intervals."""

from __future__ import annotations

import pytest

from tts_assets.audio_models.wer import (
    corpus_cer,
    corpus_wer,
    difference_interval,
    match,
    normalize_for_match,
    rate_interval,
)


@pytest.mark.parametrize(
    "written",
    ["3719", "3 7 1 9", "3-7-1-9", "37, 19.", "3.719", "Three, seven, one, nine.", "3,719"],
)
def test_digits_match_in_every_notation(written: str) -> None:
    assert match("three seven one nine", written).word_errors == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0719", "0 7 1 9"),
        ("zero seven one nine", "0 7 1 9"),
        ("oh one", "0 1"),
        ("one", "1"),
        ("007", "0 0 7"),
        ("Isn't it 20%?", "is not it 2 0 %"),
        ("the 2nd colour", "the 2 nd color"),
    ],
)
def test_normal_form(text: str, words: str) -> None:
    assert normalize_for_match(text) == words


def test_errors_are_counted_and_aligned() -> None:
    result = match("press one to leave", "Press 2 to leave now")
    assert (result.word_errors, result.words) == (2, 4)
    assert [(s.change, s.reference, s.hypothesis) for s in result.spans] == [
        ("equal", ("press",), ("press",)),
        ("substitute", ("1",), ("2",)),
        ("equal", ("to", "leave"), ("to", "leave")),
        ("insert", (), ("now",)),
    ]


def test_an_empty_transcript_misses_every_word() -> None:
    result = match("thank you", "")
    assert (result.wer, result.cer) == (1.0, 1.0)


def test_a_text_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="no words are left"):
        match("...", "hello")


def test_other_languages_keep_their_letters() -> None:
    assert normalize_for_match("¿Cómo está?", "es") == "cómo está"
    assert match("你好", "你 好", "zh").word_errors == 0


@pytest.mark.parametrize(
    ("language", "text", "transcript"),
    [
        ("en", "OK, press one.", "okay press 1"),
        ("en", "ten kilometers at nine thirty p.m.", "10 km at 9:30 pm"),
        ("en", "Henry the eighth had one half.", "Henry VIII had 1/2."),
        ("en", "one million people", "1,000,000 people"),
        ("hu", "ezerkilencszáznyolcvannégyben", "1984-ben"),
        ("de", "Das kostet zwölf Euro.", "Das kostet 12 €."),
        ("de", "am dritten Mai", "Am 3. Mai"),
        ("de", "hundertzwanzig Kilometer", "120 km"),
        ("de", "drei sieben eins neun", "3719"),
        ("de", "drei sieben eins neun", "37-19"),
        ("hu", "öt alma és kettő", "5 alma és 2."),
        ("hu", "kétezer-huszonöt", "2025"),
        ("fr", "vingt et une personnes", "21 personnes"),
        ("es", "mil euros", "1.000 €"),
        ("pl", "trzy kilometry", "3 km"),
        ("ru", "пять процентов ещё", "5% еще"),
        ("zh", "漢語語音識別有兩個", "汉语语音识别有2个"),
        ("ja", "千九百八十四年", "1984年"),
        ("hi", "पाँच सौ रुपये", "₹500"),
    ],
)
def test_numbers_in_words_and_figures_are_equal(language: str, text: str, transcript: str) -> None:
    assert match(text, transcript, language).word_errors == 0


def test_other_words_are_errors_in_every_language() -> None:
    assert match("zwölf Euro", "11 Euro", "de").word_errors == 1
    assert match("पानी गरम है", "पानी नरम है", "hi").word_errors == 1
    assert match("สวัสดี", "สวัสดิ", "th").characters == match("สวัสดี", "", "th").characters


def test_corpus_rates_weigh_texts_by_length() -> None:
    matches = [match("one", "two"), match("a b c d e f g h i", "a b c d e f g h i")]
    assert corpus_wer(matches) == pytest.approx(0.1)
    assert corpus_cer(matches) == pytest.approx(0.1)


def test_paired_intervals_are_narrower() -> None:
    hard = [0, 5] * 20  # half the texts are hard for both models
    words = [5] * 40
    better = [max(0, errors - 1) for errors in hard]
    a, b = rate_interval(hard, words), rate_interval(better, words)
    assert b.high > a.low
    paired = difference_interval(hard, words, better, words)
    assert paired.high < 0
    assert paired == difference_interval(hard, words, better, words)


def test_equal_models_differ_by_nothing() -> None:
    interval = difference_interval([1, 2], [4, 4], [1, 2], [4, 4])
    assert (interval.low, interval.high) == (0.0, 0.0)
