"""The text front end: reference readings, and what holds for every text in every language."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from num2words import CONVERTER_CLASSES

from benchmarks.text_normalizers import letters, read_list
from tests.conftest import CORPUS
from tts_assets.normalization.front_end import normalize, unread
from tts_assets.normalization.rules import languages_with_rules

READINGS = Path(__file__).parent / "readings"
LISTS = sorted(READINGS.glob("**/*.txt"))
LEAST = {"en": 0.97}  # share that must be read right; 0.9 elsewhere
EVERY_LANGUAGE = sorted({*CONVERTER_CLASSES, *languages_with_rules(), "xx", "de-AT", "zh-TW"})


@pytest.mark.parametrize("path", LISTS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_reference_readings(path: Path) -> None:
    """A text is right if it is read as one of the readings of a native speaker."""
    language, pairs = path.stem, read_list(path)
    wrong = []
    for written, readings in pairs:
        spoken = normalize(written, language)
        if letters(spoken, language) not in {letters(each, language) for each in readings}:
            wrong.append(f"{written} => {spoken}")
    assert 1 - len(wrong) / len(pairs) >= LEAST.get(language, 0.9), wrong


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        ("Press 1 now.", "Press one now."),
        ("Press the # key", "Press the pound key"),
        ("press * to toggle, press # to enter", "press star to toggle, press pound to enter"),
        ("words separated by * and then", "words separated by star and then"),
        ("dial 007", "dial zero zero seven"),
        ("The code is 5 5 5.", "The code is five five five."),
        ("the 21st  of\tMay", "the twenty-first of May"),
        ("3D audio", "three D audio"),
        ("It’s “fine” – really…", 'It\'s "fine" - really...'),
        ("1,250 calls", "one thousand two hundred and fifty calls"),
        ("#1 of 28.80", "number one of twenty-eight point eight zero"),
        ("H.323 at -5 %", "H three hundred and twenty-three at minus five percent"),
        ("call 555-1234", "call five five five, one two three four"),
        ("at 10:05 or 12:00", "at ten oh five or twelve o'clock"),
        (
            "$1.01, £20, €3.5 million",
            "one dollar and one cent, twenty pounds, three point five million euros",
        ),
        ("12345678901", "one two three four five six seven eight nine zero one"),
        ("in\u00advis\u200bi\x00ble", "invisible"),
        ("Well <laugh> & 3<clear_throat>.", "Well <laugh> and three<clear_throat>."),
        ("This is **very** important.", "This is very important."),
        ("# Chapter one\nIt was.", "Chapter one. It was."),
        ("- one\n- two", "one. two"),
        ("a <b>bold</b> &amp; brave `x`", "a bold and brave x"),
        ("wait [pause 0.5s] here <break time='1s'/>", "wait here"),
        ("FOUR ZERO SEVEN", "four zero seven"),
        ("NASA and UNICEF", "NASA and Unicef"),
        ("WARNING: do not", "Warning: do not"),
        ("\u202bright\u200f\u202c to left", "right to left"),
        ("nice 😀👍🏽!", "nice!"),
        ("cafe\u0301", "café"),
        ("I \u2764\ufe0f tea", "I tea"),
        ("see ab.com/c_d, my_var", "see ab dot com slash c underscore d, my var"),
        ("ab.com/?q=a+b", "ab dot com slash question mark q equals a plus b"),
        ("1/2 kg at €5/kg", "one half kilogram at five euros per kilogram"),
        ("No. I know.", "No. I know."),
        ("***", ""),
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
    assert normalize("3.5 Meter", "de-AT") == "drei Komma fünf Meter"
    assert normalize("1999", "am") == "አንድ ዘጠኝ ዘጠኝ ዘጠኝ"
    assert normalize("5 foo 3.50", "xx") == "5 foo 3.50"


@pytest.mark.parametrize(
    ("language", "raw", "spoken"),
    [
        ("de", "10-20 €, <5 %", "zehn bis zwanzig Euro, weniger als fünf Prozent"),
        ("de", "1 Mio. Menschen, je kg", "eine Million Menschen, je Kilogramm"),
        ("de", "So. Jetzt los", "So. Jetzt los"),
        ("de", "8:00-16:00 Uhr", "acht Uhr bis sechzehn Uhr"),
        ("es", "1 millón de personas", "un millón de personas"),
        ("pt", "R$ 1 milhão", "um milhão de reais"),
        ("fr", "1/2 kg à 5 €/kg", "un demi kilogramme à cinq euros par kilogramme"),
        ("hu", "2-es, 3-at, 1000-es", "kettes, hármat, ezres"),
        ("pl", "o godz. 17", "o godzinie siedemnastej"),
        ("ru", "Я сказал им. Они ушли.", "Я сказал им. Они ушли."),
        ("ru", "театр им. Пушкина", "театр имени Пушкина"),
        ("zh", "是-5", "是负五"),
        ("en", "a $10-million deal, exam-2", "a ten million dollars deal, exam two"),
        ("en", "$100 - 2 items", "one hundred dollars - two items"),
    ],
)
def test_ranges_scales_and_suffixes(language: str, raw: str, spoken: str) -> None:
    assert normalize(raw, language) == spoken


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("plain, spoken text!", ""),
        ("well <laugh> then", ""),
        ("four<|speech_start|>zero", "<|>"),
        ("a → b", "→"),
        ("x | y", "|"),
    ],
)
def test_unread_signs_are_reported(text: str, signs: str) -> None:
    assert unread(normalize(text, "en")) == signs


def test_figures_in_a_language_without_numbers_are_unread() -> None:
    assert unread(normalize("5 foo 3.50", "xx")) == "530"


PIECES = (
    *(
        "a",
        "Hello",
        "дом",
        "日本",
        "é",
        "e\u0301",
        "½",
        "²",
        "가",
        " ",
        "  ",
        "\n",
        "\u00a0",
        "\x01",
    ),
    *("\u200b", "\u202e", ".", ",", "...", "?", "!", ";", ":", "-", "–", "’", '"', "(", "]", "¿"),
    *("«", "_", "/", "|", "~", "`", "=", "\\", "<laugh>", "<", ">", "<|s_5|>", "<b>", "[a](b)"),
    *("$", "€", "#", "*", "%", "&", "@", "+", "№", "n° ", "p. ", "¥500", "**b**", "# h", "😀"),
    *("1", "007", "3.5", "10:05", "12:00", "555-1234", "21st", "$1.01", "MP3", "1984", "3/4/2025"),
    *("1/2", "2^10", "C#", "XIV", "II", "Dr. ", "km/h", " kg", "1,234.56", "1.234,56", "1e6"),
    *("https://a.b/c", "x@y.com", "१५", "٣", "0,000001", "999999999999", "1" * 60, "5-10%"),
    *("16:9", "’s", "'80s", "5'11\"", "12.05.", "am 3. Mai", "[pause 1s]", "pm", "million"),
)


@pytest.mark.slow
@pytest.mark.parametrize("language", EVERY_LANGUAGE)
def test_every_text_in_every_language(language: str) -> None:
    """No exception, no figures left, a bounded result that normalizing again does not change."""
    draw = random.Random(language)
    for _ in range(60):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 9)))
        spoken = normalize(text, language)
        assert normalize(spoken, language) == spoken, text
        assert len(spoken) <= 40 * len(text) + 40, text
        if language != "xx":
            assert not any(map(str.isdecimal, spoken)), text


HOSTILE = ("1", "1.", "1 ", "1-", "1/", "1,234,", "0 1", "a.", "a@", "#", "*", "-", "[", "<", "_a")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "de", "ru", "zh", "am"])
def test_long_runs_are_read_in_linear_time(language: str) -> None:
    """Each text takes a fraction of a second; a quadratic pattern would take minutes."""
    for piece in HOSTILE:
        normalize(piece * (20_000 // len(piece)), language)
    assert not unread(normalize("$" + "1" * 310, "en"))


def test_prompts_of_the_demo_are_read_once_and_for_all() -> None:
    """A transcript is normalized by the filters, and again by training."""
    lines = (CORPUS / "samples.jsonl").read_text().splitlines()
    texts = [json.loads(line)["transcript"] for line in lines]
    assert sum(any(map(str.isdigit, text)) for text in texts) > 50
    for text in texts:
        once = normalize(text, "en")
        assert not unread(once)
        assert normalize(once, "en") == once
