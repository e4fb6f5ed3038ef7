"""How a language says numbers, years, ordinals, and nouns after numbers."""

from __future__ import annotations

import re
from typing import ClassVar

from num2words import CONVERTER_CLASSES

from tts_assets.normalization.numbers import cardinal, ordinal, spell
from tts_assets.normalization.patterns import Noun, Number
from tts_assets.normalization.rules import LanguageRules


class Spoken:
    """The words of one language. Languages replace the methods in which they differ."""

    unspaced: ClassVar[bool] = False

    def __init__(self, language: str, rules: LanguageRules) -> None:
        self.language, self.rules = language, rules
        self.number = self._number_pattern()

    def _number_pattern(self) -> str:
        if self.rules.decimal == ".":
            return (
                r"(?:\d{1,3}(?:,\d{2,3}){0,4},\d{3}(?!\d)|\d{1,3}(?: 000){1,3}(?!\d)|\d+)(?:\.\d+)?"
            )
        return (
            r"(?:\d+\.(?:\d{1,2}|\d{4,})(?![\d.,])|(?:\d{1,3}(?:\.\d{3}){1,4}(?![\d.]\d)"
            r"|\d{1,3}(?: \d{3}){1,4}(?!\d)|\d+)(?:,\d+)?)"
        )

    def parse(self, text: str) -> Number:
        """A match of ``self.number`` with an optional sign."""
        minus, text = text.startswith("-"), text.lstrip("-").strip().replace(" ", "")
        decimal = self.rules.decimal
        if decimal == "," and re.fullmatch(r"\d+\.(?:\d{1,2}|\d{4,})", text):
            decimal = "."
        whole, _, decimals = text.partition(decimal)
        return Number(re.sub(r"\D", "", whole), decimals, minus)

    def say(self, number: Number, gender: str = "") -> str:
        """A number in words; a leading zero is read digit by digit."""
        whole = number.whole
        if number.decimals:
            words = self.decimal(whole, number.decimals)
        elif len(whole) > 1 and whole.startswith("0"):
            words = spell(whole, self.language)
        else:
            words = cardinal(whole, self.language, gender)
        return f"{self.phrase('minus')}{self.space}{words}" if number.minus else words

    def decimal(self, whole: str, decimals: str) -> str:
        """``3.25`` as "three point two five"; the decimals as a number where that is usual."""
        as_number = self.rules.decimals == "number" and not decimals.startswith("0")
        if as_number and len(decimals) <= 3:
            after = cardinal(decimals, self.language)
        else:
            after = spell(decimals, self.language)
        return self.join(cardinal(whole, self.language), self.phrase("point"), after)

    def count(self, number: Number, noun: Noun) -> str:
        """A number with its noun in the right form."""
        return self.join(self.say(number, noun.gender), self.form(number, noun))

    def form(self, number: Number, noun: Noun) -> str:
        """The form of a noun after a number."""
        index = len(noun.forms) - 1 if number.decimals else self.plural(int(number.whole[-9:]))
        return noun.forms[min(index, len(noun.forms) - 1)]

    def plural(self, number: int) -> int:
        """The index of the form of a noun after a whole number."""
        return int(number != 1)

    def year(self, digits: str) -> str:
        """A year in words."""
        return cardinal(digits, self.language)

    def ordinal(self, digits: str, form: str = "") -> str:
        """An ordinal in words; ``form`` is a gender or a case, by language."""
        return ordinal(digits, self.language)

    @property
    def word_end(self) -> str:
        """A pattern of the end of a unit: no letter follows, but for signs of East Asia."""
        return r"(?![a-zA-Z\d])" if self.unspaced else r"(?![^\W_])"

    @property
    def space(self) -> str:
        """What is between words."""
        return "" if self.unspaced else " "

    def join(self, *words: str) -> str:
        """Words with spaces where the language has them."""
        return self.space.join(filter(None, words))

    def phrase(self, name: str) -> str:
        """A phrase of the rules; the name of the sign in num2words, or nothing, without one."""
        if name in self.rules.phrases:
            return self.rules.phrases[name]
        attribute = {"minus": "negword", "point": "pointword"}.get(name)
        converter = CONVERTER_CLASSES.get(self.language)
        word = getattr(converter, attribute, "") if attribute else ""
        return word.strip() if isinstance(word, str) else ""
