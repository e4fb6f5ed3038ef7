"""The rules of a language: what its signs, units, currencies and abbreviations are called.

The rules of this project are the files ``rules/<language>.toml``. ``[text] rules`` names a file
with tables of the same keys, by language, which are added to them. ``[text] lexicon`` names a file
with the pronunciations of single words. ``docs/text.md`` explains both with examples.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tts_assets.core.config import Config, ConfigError

FOLDER = Path(__file__).parent / "rules"
SECTIONS = ("phrases", "words", "symbols", "units", "per", "currencies", "scales", "fractions")


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
