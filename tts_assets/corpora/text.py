"""Text as it is spoken: the one normalization that training and synthesis share.

Numbers become words (num2words), a few symbols become their names, typographic variants become
plain characters. Case and punctuation stay: they carry prosody. The raw text is kept beside.
"""

from __future__ import annotations

import re
import unicodedata

from num2words import num2words

TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "}
)
SYMBOLS = {
    "en": {"#": "pound", "*": "star", "%": "percent", "&": "and", "@": "at", "+": "plus"},
}
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LETTER_AT_DIGIT = re.compile(r"(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)")
ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)\b")


def normalize(text: str, language: str) -> str:
    """The spoken form of ``text``; empty if nothing in it can be spoken.

    >>> normalize("Press 1 for 3D\\u2019s #.", "en")
    "Press one for three D's pound."
    """
    text = unicodedata.normalize("NFC", text).translate(TYPOGRAPHY)
    for symbol, name in SYMBOLS.get(language, {}).items():
        text = text.replace(symbol, f" {name} ")
    if language == "en":
        text = ORDINAL.sub(lambda match: _words(match[1], language, "ordinal"), text)
    text = LETTER_AT_DIGIT.sub(" ", text)
    text = NUMBER.sub(lambda match: _words(match[0], language, "cardinal"), text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([.,;:!?])", r"\1", text)
    return text if is_spoken(text) else ""


def is_spoken(text: str) -> bool:
    """Whether there is at least one letter or digit in any script."""
    return any(character.isalnum() for character in text)


def _words(number: str, language: str, kind: str) -> str:
    """``1,234.5`` -> words; a leading zero or a long run is read digit by digit."""
    plain = number.replace(",", "")
    if "." in plain and plain.count(".") > 1:
        return " ".join(_words(part, language, kind) for part in plain.split("."))
    whole = plain.partition(".")[0]
    if (len(whole) > 1 and whole.startswith("0")) or len(whole) > 9:
        return " ".join(_spell(digit, language, "cardinal") for digit in plain if digit.isdigit())
    return _spell(plain, language, kind)


def _spell(number: str, language: str, kind: str) -> str:
    value = float(number) if "." in number else int(number)
    try:
        return num2words(value, lang=language, to=kind)
    except NotImplementedError:  # a language num2words does not know: digits are spoken as written
        return number
