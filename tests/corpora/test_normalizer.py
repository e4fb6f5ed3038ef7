"""The text normalizer, of single texts and of columns."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from tts_assets.core.config import ConfigError
from tts_assets.corpora import text as normalizer
from tts_assets.corpora.config import TextConfig
from tts_assets.corpora.text import CHANGES, PLAIN_LETTERS, Normalizer
from tts_assets.normalization.front_end import normalize

PIECES = (
    *(
        "a",
        "Hello",
        "Ünal",
        "дом",
        "日本",
        "も",
        "é",
        "e\u0301",
        "ﬁ",
        "ά",
        "½",
        "²",
        "가",
        "\u11a8",
    ),
    *(" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\x01", "\x1c", "\x85", "\u200b", "\u00ad"),
    *(".", ",", "...", "?", "!", ";", ":", "-", "–", "’", '"', "(", "]", "¿", "。", "«", "_", "/"),
    *("<laugh>", "<clear_throat>", "<", ">"),
    *("$ 5", "million", "# 2", "12:00", " pm", "-5", "\u00a3", "a.m.", "\u0301"),
    *("Dr. ", "St. John", "II", "Henry I", "XIV. ", "WARNING", "Str. ", "Prof. ", "z. B. ", "\n- "),
    *("www.ab.de", " per kg ", " an IV", "E.g. ", "\u2764\ufe0f", "Elm Dr.", "1/2 kg", "<5"),
    *("1", "007", "3.5", "10:05", "555-1234", "21st", "#", "*", "%", "&", "$1.01", "@", "+", "MP3"),
)


@pytest.mark.parametrize("language", ["en", "es-MX", "de", "ja", "xx"])
def test_a_column_is_normalized_as_each_text_is(language: str) -> None:
    """Most rows do not go through Python; the result must be the same."""
    draw = random.Random(language)
    texts = ["".join(draw.choices(PIECES, k=draw.randint(0, 8))) for _ in range(10_000)]
    texts += [" ".join(draw.choices(PIECES[:7], k=4)) for _ in range(1000)]
    rows = pl.LazyFrame({"text": texts, "language": [language] * len(texts)})
    spoken = Normalizer(TextConfig()).rows(rows, pl.lit(True)).collect(engine="streaming")
    assert spoken["transcript"].to_list() == [normalize(text, language) for text in texts]


def test_unread_signs_are_named() -> None:
    texts = ["a \u2192 b \u2192", "<laugh> yes", "5 <|s_5|>", "plain"]
    rows = pl.LazyFrame({"text": texts, "language": ["en"] * 4})
    for name, expected in (("rules", ["\u2192", "", "<|>", ""]), ("none", [""] * 4)):
        found = Normalizer(TextConfig(normalizer=name)).rows(rows, pl.lit(True)).collect()
        assert found["unread"].to_list() == expected
        assert found["unread"].to_list() == [
            Normalizer(TextConfig(normalizer=name)).unread(text) for text in found["transcript"]
        ]


def test_plain_letters_never_change() -> None:
    every = pl.Series([chr(code) for code in range(0x20, 0x2_0000) if not 0xD800 <= code < 0xE000])
    plain = every.filter(~every.str.contains(CHANGES) & every.str.contains(f"[{PLAIN_LETTERS}]"))
    assert len(plain) > 30_000
    text = " ".join(letter for letter in plain if letter != "\u03c0")  # pi is a sign in formulas
    for language in ("en", "es", "ko"):
        assert normalize(text, language) == text


def test_a_column_with_nothing_but_tags_needs_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Normalizer, "many", None)
    texts = ["Well <laugh> okay.", "<clear_throat>Hello", "<sigh>"]
    rows = pl.LazyFrame({"text": texts, "language": ["en"] * 3})
    spoken = Normalizer(TextConfig()).rows(rows, pl.lit(True)).collect()
    assert spoken["transcript"].to_list() == texts


def test_only_selected_rows_are_normalized() -> None:
    rows = pl.LazyFrame({"text": ["1", " 2"], "language": ["en", "en"], "wanted": [True, False]})
    for name, expected in (("rules", ["one", " 2"]), ("none", ["1", " 2"])):
        spoken = Normalizer(TextConfig(normalizer=name)).rows(rows, pl.col("wanted"))
        assert spoken.collect()["transcript"].to_list() == expected


def test_cards_of_earlier_models_are_read() -> None:
    assert TextConfig.model_validate({"normalizer": "num2words"}) == TextConfig()
    with pytest.raises(ValueError, match="delete normalizer = 'none'"):
        TextConfig.model_validate({"normalizer": "none", "rules": {"en": {}}})


def test_without_a_normalizer_text_stays_as_it_is() -> None:
    as_written = Normalizer(TextConfig(normalizer="none"))
    assert as_written("Press 1  now", "en") == "Press 1  now"
    assert as_written("?!", "en") == ""


def test_missing_nemo_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalizer, "NEMO", "no_such_package")
    with pytest.raises(ConfigError, match=r"pip install 'tts-assets\[nemo\]'"):
        Normalizer(TextConfig(normalizer="nemo"))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("nemo_text_processing"), reason="needs tts-assets[nemo]")
def test_nemo_normalizes_dates_and_caches_them(tmp_path: Path) -> None:
    nemo = Normalizer(TextConfig(normalizer="nemo"), tmp_path)
    text = "Am 5.3.2020 um 10:05 Uhr."
    (spoken,) = nemo.many([text], "de")
    assert not any(map(str.isdigit, spoken))
    assert spoken != normalize(text, "de")
    (cache,) = tmp_path.glob("*.sqlite")
    again = Normalizer(TextConfig(normalizer="nemo"), tmp_path)
    assert again.many([text], "de") == [spoken]
    assert cache.stat().st_size > 0
    assert nemo("5 foo", "xx") == "5 foo"
    assert (
        nemo("Ja <laugh> <clear_throat> gut<cry>!", "de") == "Ja <laugh> <clear_throat> gut<cry>!"
    )
