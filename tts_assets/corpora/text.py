"""Text normalization, shared by training and synthesis.

Numbers become words (num2words), some symbols become names, typographic variants become plain
characters, and invisible characters are removed. Case and punctuation stay, because they carry
prosody. Tags such as ``<laugh>`` stay. Dates, years and units need NeMo (``normalizer.py``).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from num2words import num2words

TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "}
    | dict.fromkeys("\u00ad\u200b\u2060\ufeff", "")  # soft hyphen, zero-width space, joiner, BOM
)
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # those that are no white space
SYMBOLS = {
    "en": {"#": "pound", "*": "star", "%": "percent", "&": "and", "@": "at", "+": "plus"},
    "es": {"*": "asterisco", "%": "por ciento", "&": "y", "@": "arroba", "+": "más"},
}
DECIMAL_POINT = {"en", "ja", "ko", "th", "zh"}  # elsewhere 1.000 is a thousand and 0,5 a half
DIGIT = re.compile(r"\d")
NUMBER = re.compile(r"(\.?)(\d+(?:[.,]\d+)*)")  # with the dot of "H.323"
LETTER = re.compile(r"[^\W\d_]")
# Signs that affect the word after them: "$3 million", "# 1", "12:00 pm".
ACROSS_WORDS = re.compile(r"[$£€#:]")
LONGEST_CARDINAL = 9  # digits; a longer run is a number to dial or to type

MONEY = re.compile(r"([$£€])\s?(\d+(?:,\d{3})*)(?:\.(\d\d))?(?!\d|[.,]\d)")
MILLIONS = re.compile(r"([$£€])\s?(\d[\d.,]*)(\s+(?:thousand|million|billion|trillion))\b")
COINS = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
CLOCK = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b(?!:)(\s*[ap]\.?m\b)?", re.IGNORECASE)
TELEPHONE = re.compile(r"(?<![\d.,-])(?:\d{1,3}-)?(?:\d{3}-)?\d{3}-\d{4}(?![\d-])")
ORDINAL = re.compile(r"\b(\d+(?:,\d{3})*)(?:st|nd|rd|th)\b", re.IGNORECASE)
NUMBERED = re.compile(r"#\s?(?=\d)")
SPACE_BEFORE_POINT = re.compile(r" ([.,;:!?])")
NEGATIVE = re.compile(r"(?<![\w-])-(?=\d)")


def normalize(text: str, language: str) -> str:
    """The normalized form of ``text``; empty if it has no letters or digits.

    ``language`` is a tag like ``en`` or ``en-GB``. In an unsupported language, digits stay.

    >>> normalize("Press 1 for 3D\\u2019s #.", "en")
    "Press one for three D's pound."
    """
    return _joined([_spoken(text, language.split("-")[0].lower())])


def normalize_by_words(text: str, language: str) -> str:
    """As :func:`normalize`, with a cache of words: ten times as fast over a corpus."""
    if ACROSS_WORDS.search(text):
        return normalize(text, language)
    language = language.split("-")[0].lower()
    return _joined([_word(word, language) for word in text.split()])


def _joined(parts: list[str]) -> str:
    """Parts as one text with single spaces; empty if it has no letters or digits."""
    text = SPACE_BEFORE_POINT.sub(r"\1", " ".join(" ".join(parts).split()))
    return text if is_spoken(text) else ""


def _spoken(text: str, language: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(TYPOGRAPHY)
    text = CONTROL.sub("", text)
    has_numbers = DIGIT.search(text) is not None
    if has_numbers and language == "en":
        text = _english(text)
    for symbol, name in SYMBOLS.get(language, {}).items():
        text = text.replace(symbol, f" {name} ")
    if has_numbers:
        text = NUMBER.sub(lambda match: _apart(match, _number(match[2], language)), text)
    return text


@lru_cache(maxsize=100_000)
def _word(word: str, language: str) -> str:
    return _spoken(word, language)


def is_spoken(text: str) -> bool:
    """Whether ``text`` has a letter or digit of any script."""
    return any(character.isalnum() for character in text)


def _english(text: str) -> str:
    """Money, times of day, telephone numbers, ordinals, and signs at numbers, as words."""
    text = MILLIONS.sub(lambda m: f"{m[2]}{m[3]} {COINS[m[1]][0]}s", text)
    text = MONEY.sub(_money, text)
    text = CLOCK.sub(_clock, text) if ":" in text else text
    if "-" in text:
        text = TELEPHONE.sub(lambda match: ", ".join(map(_digits, match[0].split("-"))), text)
    text = ORDINAL.sub(lambda m: num2words(int(m[1].replace(",", "")), to="ordinal"), text)
    text = NUMBERED.sub("number ", text)
    return NEGATIVE.sub("minus ", text) if "-" in text else text


def _money(match: re.Match[str]) -> str:
    sign, whole, cents = match.groups()
    large, small = COINS[sign]
    count = int(whole.replace(",", ""))
    words = f"{num2words(count)} {large}{'' if count == 1 else 's'}"
    if not int(cents or 0):
        return words
    plural = "pence" if small == "penny" else f"{small}s"
    return f"{words} and {num2words(int(cents))} {small if int(cents) == 1 else plural}"


def _clock(match: re.Match[str]) -> str:
    hour, minute, half = num2words(int(match[1])), int(match[2]), match[3] or ""
    if minute == 0:
        return hour + (half or " o'clock")
    return f"{hour} {'oh ' if minute < 10 else ''}{num2words(minute)}{half}"


def _apart(match: re.Match[str], spoken: str) -> str:
    """The words of a number, separated from letters: "3D", "MP3" and "H.323" are read in parts."""
    dot, text = match[1], match.string
    if match.start() and LETTER.match(text, match.start() - 1):
        dot = " "
    return f"{dot}{spoken}{' ' if LETTER.match(text, match.end()) else ''}"


@lru_cache(maxsize=100_000)
def _number(text: str, language: str) -> str:
    """``1,234.5`` or ``1.234,5``, as the language writes it, in words.

    A single separator that groups no thousands is a decimal one. Several are a version or an
    address and are read part by part. A leading zero or a long run is read digit by digit.
    """
    point, comma = (".", ",") if language in DECIMAL_POINT else (",", ".")
    plain = text
    if re.fullmatch(rf"\d{{1,3}}(?:\{comma}\d{{3}})+(?:\{point}\d+)?", text):
        plain = text.replace(comma, "")
    parts = re.split("[.,]", plain)
    try:
        if len(parts) == 2 and len(parts[0]) <= LONGEST_CARDINAL:
            return _decimal(parts[0], parts[1], language)
        return " ".join(_integer(part, language) for part in parts)
    except NotImplementedError:  # a language that num2words does not support
        return text


def _decimal(whole: str, fraction: str, language: str) -> str:
    if language == "en":  # every digit, including trailing zeros
        return f"{num2words(int(whole))} point {_digits(fraction)}"
    return num2words(float(f"{whole}.{fraction}"), lang=language)


def _integer(text: str, language: str) -> str:
    if (len(text) > 1 and text.startswith("0")) or len(text) > LONGEST_CARDINAL:
        return _digits(text, language)
    return num2words(int(text), lang=language)


def _digits(text: str, language: str = "en") -> str:
    return " ".join(num2words(int(digit), lang=language) for digit in text)
