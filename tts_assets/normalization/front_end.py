"""The text front end: written text to spoken text, in every language, in bounded time and size.

1. ``characters.py``: one form of each character; markup, emoji and invisible characters go.
2. The grammar of the language (``grammar.py``) reads numbers, dates, units, abbreviations, signs.
3. A sign that nothing has read stays, and :func:`unread` reports it: such a text is rejected from
   training, and refused by the server.

The result of a result is the result itself. Tags such as ``<laugh>`` stay.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

from tts_assets.normalization import asian, eastern, english, western
from tts_assets.normalization.characters import TAG, clean
from tts_assets.normalization.grammar import Grammar
from tts_assets.normalization.numbers import spell
from tts_assets.normalization.patterns import DIGIT
from tts_assets.normalization.rules import LanguageRules, builtin_rules, languages_with_rules

GRAMMARS: dict[str, type[Grammar]] = {
    "de": western.German,
    "en": english.English,
    "es": western.Spanish,
    "fr": western.French,
    "hi": asian.Hindi,
    "hu": eastern.Hungarian,
    "it": western.Italian,
    "ja": asian.Japanese,
    "ko": asian.Korean,
    "pl": eastern.Polish,
    "pt": western.Portuguese,
    "ru": eastern.Russian,
    "zh": asian.Chinese,
}
# In languages without rules of their own, a comma is the decimal sign, but for these.
POINT = {"am", "bn", "cy", "en", "fa", "he", "ja", "kn", "ko", "te", "th", "zh"}
PUNCTUATION = ".,;:!?'\"()[]-¿¡。，！？；：、،؛؟।॥~"
SPACE_BEFORE_POINT = re.compile(r" ([.,;:!?](?![\w.,;:!?]))")
REPEATED = re.compile(r"([!?,;:])\1{1,}|\.{4,}")
LONG_RUN = re.compile(r"\d{31,}")  # no pattern of a grammar needs to see more digits
PLAIN_WORD = re.compile(r"[\"'(\[]*[^\W\d_]+(?:['-][^\W\d_]+)*[.,;:!?)\]\"']*")
ROMAN_LETTERS = re.compile(r"\b[IVXL]+\b")
CONTEXT = 4  # words on each side that a reading may depend on
CACHED = 100_000  # words and windows; 20 MB
MOST_ROUNDS = 4
Rules = dict[str, LanguageRules]


def base_language(tag: str) -> str:
    """The language of a tag such as ``en-GB``."""
    return tag.split("-")[0].split("_")[0].lower()


def without_rules(tags: Iterable[str], own: Rules) -> list[str]:
    """The languages of ``tags`` that have rules neither here nor in ``own``."""
    languages = {base_language(tag) for tag in tags}
    return sorted(languages - {*languages_with_rules(), *own})


def rules_of(language: str, own: Rules | None) -> LanguageRules:
    """The rules of a language: those of the project, extended by the user's."""
    rules = builtin_rules(language) or LanguageRules(decimal="." if language in POINT else ",")
    return rules.extended(own[language]) if own and language in own else rules


class FrontEnd:
    """Normalizes texts of all languages with the rules of the project and of the user.

    A grammar takes a millisecond for a sentence. It therefore reads only windows around the words
    that may change, with :data:`CONTEXT` words on each side, and windows are cached.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules
        self.grammar = cache(self._grammar)
        self._hot_words = cache(self._read_hot_words)
        self.may_change = lru_cache(maxsize=CACHED)(self._may_change)
        self._read = lru_cache(maxsize=CACHED)(self._read_window)

    def normalize(self, text: str, language: str) -> str:
        """The spoken form of ``text``; empty if it has no letters or digits.

        What cannot be read stays, see :func:`unread`. No text raises an error.
        """
        language = base_language(language)
        for _ in range(MOST_ROUNDS):
            before, text = text, self._once(text, language)
            if text == before:
                break
        return text if is_spoken(text) else ""

    def trigger(self, language: str) -> str:
        """A regular expression (polars) that finds all texts of plain characters that change."""
        language = base_language(language)
        rules, kind = rules_of(language, self.rules), GRAMMARS.get(language, Grammar)
        words = [key.removesuffix("#").strip() for key in rules.words]
        signs = [sign for sign in rules.symbols if sign.isalpha()]
        named = "|".join(map(re.escape, [*rules.regnal, *rules.chapters]))
        after = "|".join(map(re.escape, rules.centuries))
        found = [*map(re.escape, [*words, *signs]), r"\b[IVXL]{2,}", r"\b[IVXL]\.", r"\p{Lu}{6}"]
        found += [rf"(?:{named}) [IVXL]\b"] if named else []
        found += [rf"\b[IVXL] (?:{after})"] if after else []
        return "|".join([*found, r"^[^\p{Ll}]*\p{Lu}[^\p{Ll}]*$", *kind.more_words])

    def _grammar(self, language: str) -> Grammar:
        kind = GRAMMARS.get(language, Grammar)
        return kind(language, rules_of(language, self.rules))

    def _once(self, text: str, language: str) -> str:
        text = LONG_RUN.sub(lambda m: f" {spell(m[0], language)} ", clean(text))
        if self.grammar(language).unspaced:
            text = self._read(text, language)
        else:
            text = " ".join(self._windows(text.split(), language))
        text = SPACE_BEFORE_POINT.sub(r"\1", " ".join(text.split()))
        return REPEATED.sub(lambda m: m[1] or "...", text)

    def _windows(self, words: list[str], language: str) -> Iterator[str]:
        """The words, with those read that may change."""
        position, start, end = 0, 0, -1
        for index, word in enumerate(words):
            if not self.may_change(word, language):
                continue
            if end >= 0 and index - CONTEXT > end:
                yield from words[position:start]
                yield self._read(" ".join(words[start:end]), language)
                position, start = end, index - CONTEXT
            elif end < 0:
                start = max(0, index - CONTEXT)
            end = index + CONTEXT + 1
        if end < 0:
            yield from words
            return
        yield from words[position:start]
        yield self._read(" ".join(words[start:end]), language)
        yield from words[end:]

    def _may_change(self, word: str, language: str) -> bool:
        if not PLAIN_WORD.fullmatch(word):
            return True
        hot, more = self._hot_words(language)
        bare = word.strip(PUNCTUATION)
        if ROMAN_LETTERS.search(word) and not (language == "en" and bare == "I"):
            return True
        return not hot.isdisjoint({word, bare, word.rstrip(",;:!?)\"'")}) or bool(more.search(word))

    def _read_hot_words(self, language: str) -> tuple[frozenset[str], re.Pattern[str]]:
        """Words that a grammar reads although they are plain, and a pattern of others."""
        rules, kind = rules_of(language, self.rules), GRAMMARS.get(language, Grammar)
        keys = [*rules.words, *rules.regnal, *rules.chapters]
        signs = [re.escape(sign) for sign in rules.symbols if not sign.isascii()]
        pattern = re.compile("|".join([*signs, *kind.more_words]) or r"(?!)")
        return frozenset(key.split()[0] for key in keys if key.split()), pattern

    def _read_window(self, text: str, language: str) -> str:
        grammar = self.grammar(language)
        try:
            return grammar(text)
        except (ValueError, LookupError, ArithmeticError):  # of a number that no rule expects
            return DIGIT.sub(lambda m: f" {spell(m[0], language)} ", text)


def unread(text: str) -> str:
    """The signs of a normalized text that nothing reads, without repetitions; empty if none."""
    outside = TAG.sub("", text)
    if outside.isalpha():
        return ""
    return "".join(dict.fromkeys(c for c in outside if not is_read(c)))


@lru_cache(maxsize=10_000)
def is_read(character: str) -> bool:
    """Whether a character is a letter, mark, space, or punctuation that carries prosody."""
    category = unicodedata.category(character)
    return category[0] in "LM" or character == " " or character in PUNCTUATION


def is_spoken(text: str) -> bool:
    """Whether ``text`` has a letter or digit of any script."""
    return any(map(str.isalnum, text))


@cache
def default_front_end() -> FrontEnd:
    """The front end with the rules of the project."""
    return FrontEnd()


def normalize(text: str, language: str) -> str:
    """``text`` as it is spoken in ``language``, a tag like ``en`` or ``en-GB``.

    >>> normalize("Press 1 for 3D\\u2019s #.", "en")
    "Press one for three D's pound."
    """
    return default_front_end().normalize(text, language)
