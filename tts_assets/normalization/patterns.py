"""Patterns of written text that all languages share, and the values that they read.

Every repetition is bounded or of one class of characters: the time grows linearly with the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Match = re.Match[str]
DIGIT = re.compile(r"\d")
BEFORE = r"(?<!\d)(?<!\d[.,])"  # a number starts here
SIGN = r"(?:(?<![\w)])-)?"
ROMAN = r"(?=[IVXL])(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50}
TOP_LEVEL = "com|org|net|edu|gov|info|io|ai|app|dev|eu|de|at|ch|fr|be|es|mx|it|pt|br|hu|pl|ru|cz|sk"
TOP_LEVEL += "|cn|jp|kr|in|uk|us|ca|au|nl|se|no|dk|fi|ie|tv|me|co|biz|xyz|online|shop"
ADDRESS = re.compile(
    r"\bhttps?://[^\s<>\"']{1,2000}|\bwww\.[^\s<>\"']{1,2000}"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,6}"
    rf"|(?<![\w.@-])(?:[\w-]{{2,64}}\.){{1,4}}(?:{TOP_LEVEL})(?![\w.-]*\w)(?:/[^\s<>\"']{{0,1000}})?"
)
ADDRESS_PART = re.compile(r"\d+|[^\W\d_]+|[^\w\s]|_")
SCIENTIFIC = re.compile(r"(?<![\w.,])(\d{1,9}(?:[.,]\d{1,9})?)[eE]([+-]?)(\d{1,3})(?!\w)")
CARD = re.compile(r"(?<![\d-])\d{4}(?:[ -]\d{4}){2,6}(?![\d-])")
PHONE = re.compile(
    r"(?<![\w+.,])(?:\+\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,7}"
    r"|\(\d{2,5}\)[ -]?\d{2,5}(?:[ -]\d{2,5}){1,4}"
    r"|0\d{1,5}(?:[ /-]\d{2,8}){1,6}|\d-\d{3}-\d{3}-\d{4}"
    r"|\d{3}([.-])\d{3}\1\d{4}|\d{3}-\d{4})(?![\d-])"
)
# In languages without spaces, letters may be before a number.
PHONE_UNSPACED = re.compile(PHONE.pattern.replace(r"[\w+.,]", r"[a-zA-Z\d+.,]", 1))
DOTTED = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
VERSION = re.compile(r"(?<![\d.,])\d{1,4}(?:\.\d{1,4}){2,5}(?![\d.,]*\d)")
CLOCK = re.compile(r"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?![\d:])")
DATE = re.compile(r"(?<![\d./-])(\d{1,4})([./-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/-]|\.\d)")
FRACTION = re.compile(r"(?<![\d./,])(?:(\d{1,4}) )?(\d{1,3})/(\d{1,4})(?![\d/]|[.,]\d)")
RATIO = re.compile(r"(?<![\d:.,])(\d{1,6}) ?: ?(\d{1,6})(?![\d:]|[.,]\d)")
POWER = re.compile(r"(?<=[\w)])\^\(?(-?\d{1,6})\)?")
CHARACTERS = re.compile(r"(?<=[\w)])(²|³)")
SCORE = re.compile(r"(?<![\w-])(\d{1,4})-(\d{1,4})(?![\w-])")


@dataclass(frozen=True)
class Noun:
    """The forms of a noun after numbers, and its gender."""

    forms: tuple[str, ...]
    gender: str

    @classmethod
    def parse(cls, text: str) -> Noun:
        """``kilometer|kilometers:m``; masculine without a gender."""
        forms, _, gender = text.partition(":")
        return cls(tuple(forms.split("|")), gender or "m")


@dataclass(frozen=True)
class Number:
    """A written number: ASCII digits before and after the decimal sign."""

    whole: str
    decimals: str = ""
    minus: bool = False


@dataclass(frozen=True)
class Pattern:
    """A pattern, and what reads its matches; None leaves a match as it is."""

    expression: re.Pattern[str]
    read: Callable[[Match], str | None]
    needs: str = ""  # a text without any of these characters has no match; "0": any digit


def read_as(text: str | None) -> Callable[[Match], str | None]:
    """A reader that returns ``text`` for every match."""
    return lambda _: text


def looked_up(table: Mapping[str, str], after: str) -> Callable[[Match], str | None]:
    """A reader that returns the entry of a match in ``table``, and ``after``."""
    return lambda match: f"{table[match[0]]}{after}"


def either(words: Iterable[str]) -> str:
    """An alternation of literal words, the longest first; it matches nothing without words."""
    ordered = sorted(words, key=len, reverse=True)
    return "|".join(map(re.escape, ordered)) or r"(?!)"


def roman_value(text: str) -> int:
    """The value of a Roman number of the letters I, V, X and L."""
    values = [ROMAN_VALUES[letter] for letter in text]
    pairs = zip(values, [*values[1:], 0], strict=True)
    return sum(-value if value < following else value for value, following in pairs)


def digits_of(text: str) -> str:
    """The digits of a text."""
    return re.sub(r"\D", "", text)
