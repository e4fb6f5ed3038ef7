"""Text normalization, of single texts and of columns."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import CORPUS
from tts_assets.core.config import ConfigError
from tts_assets.corpora import normalizer
from tts_assets.corpora.config import TextConfig
from tts_assets.corpora.normalizer import CHANGES, PLAIN_LETTERS, Normalizer
from tts_assets.corpora.text import normalize

PROMPTS = CORPUS / "samples.jsonl"


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        ("Press 1 now.", "Press one now."),
        ("Press the # key", "Press the pound key"),
        ("dial 007", "dial zero zero seven"),
        ("the 21st  of\tMay", "the twenty-first of May"),
        ("3D audio", "three D audio"),
        ("It’s “fine” – really…", 'It\'s "fine" - really...'),
        ("1,250 calls", "one thousand, two hundred and fifty calls"),
        ("#1 of 28.80", "number one of twenty-eight point eight zero"),
        ("H.323 at -5 %", "H three hundred and twenty-three at minus five percent"),
        ("call 555-1234", "call five five five, one two three four"),
        ("at 10:05 or 12:00", "at ten oh five or twelve o'clock"),
        (
            "$1.01, £20, €3.5 million",
            "one dollar and one cent, twenty pounds, three point five million euros",
        ),
        ("version 1.2.3", "version one two three"),
        ("12345678901", "one two three four five six seven eight nine zero one"),
        ("in\u00advis\u200bi\x00ble", "invisible"),
        ("Well <laugh> & 3<clear_throat>.", "Well <laugh> and three<clear_throat>."),
        ("...", ""),
        ("", ""),
        ("  \n", ""),
    ],
)
def test_english(raw: str, spoken: str) -> None:
    assert normalize(raw, "en") == spoken


def test_other_languages_and_unknown_ones() -> None:
    assert normalize("2 perros", "es") == "dos perros"
    assert normalize("Hány 3 óra?", "hu") == "Hány három óra?"
    assert normalize("1.250,5 Meter", "de") == "eintausendzweihundertfünfzig Komma fünf Meter"
    assert normalize("3.5 Meter", "de-AT") == "drei Komma fünf Meter"
    assert normalize("5 foo 3.50", "xx") == "5 foo 3.50"


def test_normalizing_twice_changes_nothing() -> None:
    """A transcript is normalized by the filters, and again by training."""
    texts = [json.loads(line)["transcript"] for line in PROMPTS.read_text().splitlines()]
    assert sum(any(map(str.isdigit, text)) for text in texts) > 50
    for text in [*texts, "Call 42 & press * or # by the 3rd at 10:00 for $5.50."]:
        once = normalize(text, "en")
        assert not any(map(str.isdigit, once))
        assert normalize(once, "en") == once


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
    *("1", "007", "3.5", "10:05", "555-1234", "21st", "#", "*", "%", "&", "$1.01", "@", "+", "MP3"),
)


@pytest.mark.parametrize("language", ["en", "es-MX", "ja", "xx"])
def test_a_column_is_normalized_as_each_text_is(language: str) -> None:
    """Most rows do not go through Python; the result must be the same."""
    draw = random.Random(language)
    texts = ["".join(draw.choices(PIECES, k=draw.randint(0, 8))) for _ in range(10_000)]
    texts += [" ".join(draw.choices(PIECES[:7], k=4)) for _ in range(1000)]
    rows = pl.LazyFrame({"text": texts, "language": [language] * len(texts)})
    spoken = Normalizer(TextConfig()).rows(rows, pl.lit(True)).collect(engine="streaming")
    assert spoken["transcript"].to_list() == [normalize(text, language) for text in texts]


def test_plain_letters_never_change() -> None:
    every = pl.Series([chr(code) for code in range(0x20, 0x2_0000) if not 0xD800 <= code < 0xE000])
    plain = every.filter(~every.str.contains(CHANGES) & every.str.contains(f"[{PLAIN_LETTERS}]"))
    assert len(plain) > 30_000
    for text in ("".join(plain), "".join(reversed(plain.to_list()))):
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
    for name, expected in (("num2words", ["one", " 2"]), ("none", ["1", " 2"])):
        spoken = Normalizer(TextConfig(normalizer=name)).rows(rows, pl.col("wanted"))
        assert spoken.collect()["transcript"].to_list() == expected


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
