"""The rules of a language: what its signs, units, currencies and abbreviations are called.

The rules of this project are the files ``rules/<language>.toml``. ``[text] rules`` names a file
with tables of the same keys, by language, which are added to them. ``[text] lexicon`` names a file
with the pronunciations of single words. ``docs/text.md`` explains both with examples.

The patterns of written text, and the values that they read, are the same for all languages. Every
repetition is bounded or of one class of characters: the time grows linearly with the text.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tts_assets.core.config import Config, ConfigError

FOLDER = Path(__file__).parent / "rules"
SECTIONS = ("phrases", "words", "symbols", "units", "per", "currencies", "scales", "fractions")
Match = re.Match[str]
DIGIT = re.compile(r"\d")
BEFORE = r"(?<!\d)(?<!\d[.,])"  # a number starts here
SIGN = r"(?:(?<![\w)])-)?"
ROMAN = r"(?=[IVXL])(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50}
TOP_LEVEL = "com|org|net|edu|gov|info|io|ai|app|dev|eu|de|at|ch|fr|be|es|mx|it|pt|br|hu|pl|ru|cz|sk"


class LanguageRules(Config):
    """The rules of one language.

    The forms of a noun are separated by ``|``: one and many, or one, few, many for Slavic
    languages, and a last one after decimals; ``:f`` or ``:n`` is its gender. The nouns of a
    currency are the large and the small one, separated by ``/``.
    """

    decimal: Literal[".", ","] = Field(".", description="sign before the decimals")
    decimals: Literal["digits", "number"] = Field("digits", description="how decimals are said")
    date: Literal["dmy", "mdy", "ymd"] = Field("dmy", description="order of a date in figures")
    months: tuple[str, ...] = Field((), description="twelve names, as a date in figures is read")
    month_names: dict[str, int] = Field({}, description="other forms of months in texts")
    phrases: dict[str, str] = Field({}, description="words such as minus, point, percent, to")
    words: dict[str, str] = Field({}, description="abbreviations and words by their spoken form")
    symbols: dict[str, str] = Field({}, description="signs by their names")
    units: dict[str, str] = Field({}, description="units by the forms of their noun")
    per: dict[str, str] = Field({}, description="units after a slash, such as 'per hour'")
    currencies: dict[str, str] = Field({}, description="currencies by the forms of their nouns")
    scales: dict[str, str] = Field({}, description="k, M and bn after a sum of money")
    fractions: dict[str, str] = Field({}, description="such as 1/2")
    regnal: tuple[str, ...] = Field((), description="names before a Roman ordinal")
    chapters: tuple[str, ...] = Field((), description="words before a Roman cardinal")
    centuries: tuple[str, ...] = Field((), description="words after a Roman number")

    @property
    def signs_of_units(self) -> list[str]:
        """Units that are no words, such as ``km``, if the language has words before them."""
        names = [name for name in self.units if len(name) > 1 and name.isascii() and name.isalpha()]
        return [
            n for n in names if not set("aeiou") & set(n.lower()) and "per_unit" in self.phrases
        ]

    def extended(self, own: LanguageRules) -> LanguageRules:
        """These rules, with those keys that ``own`` sets added or replaced."""
        changes: dict[str, Any] = {}
        for name in own.model_fields_set:
            value = getattr(own, name)
            changes[name] = {**getattr(self, name), **value} if isinstance(value, dict) else value
        return self.model_copy(update=changes)


@cache
def builtin_rules(language: str) -> LanguageRules | None:
    """The rules of this project for a language such as ``de``; None if it has none."""
    path = FOLDER / f"{language}.toml"
    if not path.is_file():
        return None
    return LanguageRules.parse(tomllib.loads(path.read_text("utf-8")), str(path))


def languages_with_rules() -> list[str]:
    """The languages that this project has rules for."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@cache
def simplified_characters() -> dict[int, str]:
    """The simplified form of each traditional Chinese character that has another one."""
    lines = (FOLDER / "traditional_chinese.txt").read_text("utf-8").splitlines()
    pairs = "".join(line for line in lines if not line.startswith("#"))
    return {ord(pairs[i]): pairs[i + 1] for i in range(0, len(pairs), 2)}


def with_files(text: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The table ``[text]`` with the contents of the files that it names, relative to ``folder``.

    Raises :class:`ConfigError` if one cannot be read.
    """
    named = {key: text[key] for key in ("rules", "lexicon") if isinstance(text.get(key), str)}
    return {**text, **{key: read_toml(folder / name, key) for key, name in named.items()}}


def read_toml(path: Path, key: str) -> dict[str, Any]:
    """The tables of a file of ``[text]``. Raises :class:`ConfigError` if it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"[text] {key}: cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"[text] {key}: {path} is not TOML: {error}") from None


PRONUNCIATION = re.compile(r"([^/]*?) *(?:/([^/]+)/)?")
WORD_SIGNS, PHONEME_SIGNS = {"L", "M", "'", "\u2019", "-"}, {"L", "M", "Sk", " ", ".", "-"}


@dataclass(frozen=True)
class Pronunciation:
    """How a word of a lexicon is read: its respelling, its phonemes, or both; empty if unset."""

    respelling: str
    phonemes: str

    @classmethod
    def of(cls, word: str, text: str) -> Pronunciation:
        """The pronunciation ``respelling``, ``/phonemes/`` or ``respelling /phonemes/``.

        Raises ValueError with the remedy if the word or its pronunciation is malformed.
        """
        outer = {word[:1], word[-1:]}
        if not _made_of(word, WORD_SIGNS) or outer & {"", "'", "\u2019", "-"}:
            raise ValueError(
                f"{word!r} is no single word of letters: the normalizer reads numbers, signs and "
                "abbreviations before the lexicon. Name it in [text] rules, under words"
            )
        match = PRONUNCIATION.fullmatch(text)
        respelling, phonemes = (match[1] or "", (match[2] or "").strip()) if match else ("", "")
        if not respelling and not phonemes:
            raise ValueError(
                f"the pronunciation {text!r} of {word!r} is neither a respelling nor phonemes: "
                "write 'sequel', '/ˈsiːkwəl/', or 'sequel /ˈsiːkwəl/'"
            )
        if respelling and not _made_of(respelling, WORD_SIGNS | {" "}):
            raise ValueError(f"the respelling {respelling!r} of {word!r} is not made of letters")
        if phonemes and not _made_of(phonemes, PHONEME_SIGNS):
            raise ValueError(
                f"/{phonemes}/ of {word!r} has signs that are not in the International Phonetic "
                "Alphabet: write phonemes as espeak-ng does, such as /ˈsiːkwəl/"
            )
        return cls(respelling, phonemes)


def _made_of(text: str, allowed: set[str]) -> bool:
    """Whether ``text`` has a letter, and only characters or Unicode categories in ``allowed``."""
    kinds = [(unicodedata.category(character), character) for character in text]
    found = all(not allowed.isdisjoint({kind, kind[0], character}) for kind, character in kinds)
    return found and text == text.strip() and any(kind[0] == "L" for kind, _ in kinds)


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
