"""How a language reads quantities, ranges, comparisons, and scales and units alone.

A range is read before its parts, because the second part is otherwise a negative number, and the
sign between the parts is lost once they are words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tts_assets.normalization.numbers import Spoken
from tts_assets.normalization.patterns import BEFORE, Match, Noun, Number, Pattern, either

CLOCK_RANGE = re.compile(
    r"(?:(?<=\d:[0-5]\d)|(?<=\dh)|(?<=\dh[0-5]\d)) ?- ?(?=(?:[01]?\d|2[0-4])[:h](?:[0-5]\d)?(?!\d))"
)
COMPARED = re.compile(r"(?<![\w<>=)-])([<>])(?=[$€£]?\d)")
SHARED_FRACTION = r"(?<![\d./,])(?:(\d{1,4}) )?(\d{1,3})/(\d{1,3})"


class Quantities(Spoken):
    """Numbers with units, ranges, comparisons, and nouns beside more or less than one number."""

    units: dict[str, Noun]
    currencies: dict[str, list[Noun]]

    def sum_in_words(self, number: Number, nouns: list[Noun], scale: str | None) -> str:
        """A sum of money, with ``scale`` such as ``million``."""
        raise NotImplementedError

    def fraction_in_words(self, whole: str | None, above: str, below: str) -> str:
        """``two and a half``."""
        raise NotImplementedError

    def clock_ranges(self) -> Iterator[Pattern]:
        """``9:00-17:00`` and ``8h-18h``."""
        to = f"{self.space}{self.phrase('to')}{self.space}"
        yield Pattern(CLOCK_RANGE, lambda _: to, "-")

    def compared(self) -> Iterator[Pattern]:
        """``<5 %``: less than five percent; ``10 x 20 cm``."""
        if self.phrase("times"):
            times = f"{self.space}{self.phrase('times')}{self.space}"
            yield Pattern(re.compile(r"(?<=\d) x (?=\d)"), lambda _: times, "x")
        names = {
            "<": self.phrase("less_than") or self.phrase("less"),
            ">": self.phrase("more_than") or self.phrase("greater"),
        }
        if all(names.values()):
            yield Pattern(COMPARED, lambda m: f"{names[m[1]]}{self.space}", "<>")

    def sum_ranges(self) -> Iterator[Pattern]:
        """``$10-$20``, ``10-20 €``, ``5-10 million``, ``20%-30%``."""
        signs, scales, number = either(self.currencies), either(self.rules.scales), self.number
        start = r"(?<![a-zA-Z])" if self.unspaced else r"(?<![^\W\d_])"
        before = rf"{start}({signs}) ?({number})(?: ?[-~] ?\1 ?|[-~])({number})"
        before += rf"(?: ?({scales}){self.word_end})?(?!-?\d| ?=)"
        after = rf"{BEFORE}(?<![-/])({number}) ?[-~] ?({number})(?: ?({scales}))? ?({signs})"
        if self.currencies:
            yield Pattern(re.compile(before), lambda m: self.sum_range(m, 1, 2, 4), "-~")
            yield Pattern(
                re.compile(after + self.word_end), lambda m: self.sum_range(m, 4, 1, 3), "-~"
            )
        to = f"{self.space}{self.phrase('to')}{self.space}"
        yield Pattern(re.compile(r"(?:(?<=\d[%°€$£])|(?<=°[CF])) ?- ?(?=\d)"), lambda _: to, "-")

    def sum_range(self, match: Match, sign: int, first: int, scale: int) -> str:
        """The currency follows the second number only."""
        nouns = self.currencies[match[sign]]
        low = self.say(self.parse(match[first]), nouns[0].gender)
        high = self.sum_in_words(self.parse(match[first + 1]), nouns, match[scale])
        return self.join(low, self.phrase("to"), high)

    def units_alone(self) -> Iterator[Pattern]:
        """``5 mln`` without a currency, ``1/2 kg``, and ``per kg``."""
        scales = {  # without the "of" before a currency
            name: Noun.parse(re.sub(r" d[ei]\b", "", forms))
            for name, forms in self.rules.scales.items()
            if len(name) > 1 and name.lower() != name.upper() and " " not in name
        }
        scaled = rf"{BEFORE}({self.number}) ?({either(scales)}){self.word_end}"
        yield Pattern(re.compile(scaled), lambda m: self.count(self.parse(m[1]), scales[m[2]]), "0")
        units = either(self.units)
        part = rf"{SHARED_FRACTION} ?({units}){self.word_end}"
        if self.units:
            yield Pattern(re.compile(part), self.part_of_unit, "/")
        if self.rules.signs_of_units:
            names = either(self.rules.signs_of_units)
            words = self.phrase("per_unit").split("|")
            before = "|".join(rf"(?<=\b{word} )" for word in words)
            after = rf"(?:{before})({names}){self.word_end}"
            yield Pattern(re.compile(after), lambda m: self.units[m[1]].forms[0])

    def part_of_unit(self, match: Match) -> str:
        """``three quarters kilometer``."""
        whole, above, below, unit = match.groups()
        noun = self.units[unit]
        one = not whole and len(noun.forms) < 3
        form = noun.forms[0] if one else self.form(Number(whole or "0", "5"), noun)
        return self.join(self.fraction_in_words(whole, above, below), form)

    def quantity_patterns(self) -> Iterator[Pattern]:
        """Numbers with units, also ranges and units after a slash."""
        units = either(self.units)
        number = rf"{BEFORE}(?<!\d/)({self.sign}{self.number})(?: ?[-~] ?({self.number}))?"
        if self.units:
            per = rf"{either(self.rules.per)}|[a-zA-Zа-я]{{1,6}}|m²|m³"
            measured = rf"{number} ?({units})(?:/({per}))?{self.word_end}"
            yield Pattern(re.compile(measured), self.quantity, "0")

    def quantity(self, match: Match) -> str | None:
        """``10 km/h`` and ``5-10%``."""
        first, second, unit, per = match.groups()
        number, noun = self.parse(second or first), self.units[unit]
        words = self.count(number, noun)
        if second:
            words = self.join(self.say(self.parse(first), noun.gender), self.phrase("to"), words)
        if per is None:
            return words
        return self.join(words, self.per(per)) if self.per(per) else None

    def per(self, unit: str) -> str:
        """``per hour``."""
        if unit in self.rules.per:
            return self.rules.per[unit]
        noun = self.units.get(unit)
        return self.join(self.phrase("per"), noun.forms[0]) if noun else ""
