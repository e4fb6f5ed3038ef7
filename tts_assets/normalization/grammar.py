"""The grammar of a language: how each pattern of written text is read.

The patterns are applied in a fixed order, from the specific ones (addresses, dates, money) to plain
numbers and signs. What a pattern has read holds no digits, so that no later one reads it again.
Languages differ by their rules (``rules.py``) and by the methods that they replace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from tts_assets.normalization.numbers import Quantities, cardinal, known, spell
from tts_assets.normalization.rules import (
    ADDRESS,
    ADDRESS_PART,
    BEFORE,
    CARD,
    CHARACTERS,
    CLOCK,
    DATE,
    DIGIT,
    DOTTED,
    FRACTION,
    PHONE,
    PHONE_UNSPACED,
    POWER,
    RATIO,
    ROMAN,
    SCIENTIFIC,
    VERSION,
    LanguageRules,
    Match,
    Noun,
    Number,
    Pattern,
    digits_of,
    either,
    looked_up,
    read_as,
    roman_value,
)


class Grammar(Quantities):
    """The reading of all patterns in one language."""

    more_words: ClassVar[tuple[str, ...]] = ()  # patterns of plain words that the grammar reads

    def __init__(self, language: str, rules: LanguageRules) -> None:
        super().__init__(language, rules)
        self.units = {name: Noun.parse(forms) for name, forms in rules.units.items()}
        self.currencies = {
            name: [Noun.parse(noun) for noun in nouns.split("/")]
            for name, nouns in rules.currencies.items()
        }
        self.months = {name.lower(): number for name, number in rules.month_names.items()} | {
            name.lower(): number for number, name in enumerate(rules.months, 1)
        }
        self.patterns = list(self.all_patterns())

    def __call__(self, text: str) -> str:
        """``text`` in words. Spaces may be doubled."""
        has_digits = DIGIT.search(text) is not None
        for pattern in self.patterns:
            if pattern.needs == "0":
                if not has_digits:
                    continue
            elif pattern.needs and not any(c in text for c in pattern.needs):
                continue
            text = self._replace(pattern, text)
        return text

    def all_patterns(self) -> Iterator[Pattern]:
        """All patterns in their order."""
        yield Pattern(ADDRESS, self.address, ".@")
        if not known(self.language):  # figures stay, and are reported as unread
            yield from self.word_patterns()
            yield from self.sign_patterns()
            return
        yield from self.first_patterns()
        yield from self.word_patterns()
        yield from self.roman_patterns()
        yield from self.date_patterns()
        yield Pattern(CARD, lambda m: spell(digits_of(m[0]), self.language), "0")
        yield Pattern(PHONE_UNSPACED if self.unspaced else PHONE, self.phone, "0")
        yield from self.clock_ranges()
        yield from self.clock_patterns()
        yield Pattern(DOTTED, self.version, "0")
        yield Pattern(VERSION, self.version, "0")
        yield from self.compared()
        yield from self.sum_ranges()
        yield from self.money_patterns()
        yield from self.units_alone()
        yield from self.quantity_patterns()
        yield from self.number_patterns()
        yield from self.sign_patterns()

    def first_patterns(self) -> Iterator[Pattern]:
        """Patterns of one language that come before those of all languages."""
        yield from ()

    # Addresses and words

    def address(self, match: Match) -> str | None:
        """An address on the web or of a mailbox, part by part."""
        text = match[0].rstrip(".,;:!?)")
        rest = match[0][len(text) :]
        short = re.sub(r"^https?://", "", text).rstrip("/")
        words = [self._address_part(part) for part in ADDRESS_PART.findall(short)]
        return " ".join(filter(None, words)) + rest if short else None

    def _address_part(self, part: str) -> str:
        if part.isdigit():
            return spell(part, self.language) if len(part) > 2 else cardinal(part, self.language)
        if part.lower() == "www":
            return "w w w"
        if part.isalpha():
            return part
        names = {".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon"}
        names |= {"?": "question_mark", "=": "equals", "+": "plus"}
        return self.phrase(names.get(part, "")) or self.rules.symbols.get(part, "")

    def word_patterns(self) -> Iterator[Pattern]:
        """Abbreviations and words of the rules."""
        start = r"(?<![.@/])" if self.unspaced else r"(?<![^\W\d_])(?<![.@/])"
        follows = {
            " #": r"(?= ?[\d+(]| [IVXL]+\b(?!'| (?!of |and |was |is )[a-z]))",
            " ": r"(?= ?[^\W\d_])",
            "": r"(?![\w@])",
        }
        for ending, what in follows.items():
            own = {
                key.removesuffix(ending): word
                for key, word in self.rules.words.items()
                if ending == next(each for each in follows if key.endswith(each))
            }
            expression = re.compile(rf"{start}(?:{either(own)}){what}")
            yield Pattern(expression, looked_up(own, " " if ending else ""))

    def roman_patterns(self) -> Iterator[Pattern]:
        """Roman numbers beside names, chapters and centuries, and alone."""
        rules = self.rules
        names, chapters, after = (
            either(rules.regnal),
            either(rules.chapters),
            either(rules.centuries),
        )
        for expression, read in (
            (rf"\b({names}) ({ROMAN})\b(?!'(?!s\b))", self.reign),
            (rf"\b({chapters}) ({ROMAN})\b(?!'(?!s\b))", self.chapter),
            (rf"\b({ROMAN})(?=\.?[ -](?:{after})(?!\w))\.?", self.century),
            (rf"(?<![\w.'-])({ROMAN})(?![\w'-]|\.\w)", self.roman),
        ):
            yield Pattern(re.compile(expression), read, "IVXL")

    def reign(self, match: Match) -> str | None:
        """``Henry VIII``."""
        return f"{match[1]} {self.ordinal(str(roman_value(match[2])), 'm')}"

    def chapter(self, match: Match) -> str | None:
        """``Chapter IV``."""
        return f"{match[1]} {cardinal(str(roman_value(match[2])), self.language)}"

    def century(self, match: Match) -> str | None:
        """``XX`` before a century."""
        return self.ordinal(str(roman_value(match[1])), "m")

    def roman(self, match: Match) -> str | None:
        """A Roman number alone; a single letter, XL, and what may be initials are left."""
        text = match[1]
        clear = len(text) >= 2 and text not in ("XL", "LI", "IL", "XX", "LX", "XXX", "MI", "LV")
        return cardinal(str(roman_value(text)), self.language) if clear else None

    # Numbers to dial, dates, times

    def phone(self, match: Match) -> str | None:
        """A telephone number, digit by digit, with a comma between its groups."""
        groups = re.findall(r"\d+", match[0])
        if sum(map(len, groups)) < 7:
            return None
        plus = f"{self.phrase('plus')} " if match[0].startswith("+") else ""
        return plus + ", ".join(spell(group, self.language) for group in groups)

    def version(self, match: Match) -> str | None:
        """A version or an IP address: its parts, with the name of the dot between them."""
        if self.rules.decimal == "," and re.fullmatch(r"\d{1,3}(?:\.\d{3})+", match[0]):
            return None
        parts = match[0].split(".")
        dot = self.phrase("version_dot") if len(parts) < 4 else ""
        say = spell if len(parts) > 3 else cardinal
        return f" {dot or self.phrase('dot')} ".join(say(part, self.language) for part in parts)

    def date_patterns(self) -> Iterator[Pattern]:
        """Dates in figures, and those with the name of a month."""
        if self.rules.months:
            yield Pattern(DATE, self.date_in_figures, "0")

    def date_in_figures(self, match: Match) -> str | None:
        """A date such as 2025-03-04, 3/4/2025 or 4.3.25; other numbers are left."""
        first, mark, second, third = match.groups()
        if len(first) == 4:
            year, month, day = first, int(second), int(third)
        elif len(first) == 3 or (len(third) == 2 and mark == "-"):
            return None
        else:
            year, day, month = third, int(first), int(second)
            if self.rules.date == "mdy" and mark != ".":
                day, month = month, day
            if month > 12 >= day:
                day, month = month, day
        if not (1 <= month <= 12 and 1 <= day <= 31) or (len(first) == 4 and len(third) > 2):
            return None
        return self.date(str(day), month, year)

    def date(self, day: str, month: int, year: str) -> str:
        """A date in words."""
        return self.join(
            cardinal(day, self.language), self.rules.months[month - 1], self.year(year)
        )

    def clock_patterns(self) -> Iterator[Pattern]:
        """Times of day."""
        yield Pattern(CLOCK, self.clock, ":")

    def clock(self, match: Match) -> str | None:
        """``9:30``, hours and minutes as numbers."""
        parts = [part for part in match.groups() if part is not None]
        if self.phrase("hour"):
            return self.clock_with_units(*(int(part) for part in parts))
        return self.join(*(cardinal(part, self.language) for part in parts))

    def clock_with_units(self, hour: int, minute: int, second: int = 0) -> str:
        """Hours, minutes and seconds, each with its unit if it is in the rules."""
        parts = [self.count(Number(str(hour)), Noun.parse(self.phrase("hour")))]
        for value, unit in ((minute, "minute"), (second, "second")):
            if value and self.phrase(unit):
                parts.append(self.count(Number(str(value)), Noun.parse(self.phrase(unit))))
            elif value:
                parts.append(cardinal(str(value), self.language))
        return self.join(*parts)

    # Money

    def money_patterns(self) -> Iterator[Pattern]:
        """Sums of money, with the currency before or after them."""
        signs, scales = either(self.currencies), either(self.rules.scales)
        number = rf"({self.sign}{self.number})"
        start = r"(?<![a-zA-Z])" if self.unspaced else r"(?<![^\W\d_])"
        per = rf"(?:/(?P<per>{either([*self.rules.per, *self.units])}){self.word_end})?"
        before = rf"{start}(-?)({signs}) ?{number}(?:[ -]?({scales}){self.word_end})?{per}"
        after = rf"{BEFORE}(){number}(?: ?({scales}))? ?({signs}){self.word_end}{per}"
        if self.currencies:
            yield Pattern(re.compile(before), lambda m: self.sum_of_money(m, 2, 3, 4), "0")
            yield Pattern(re.compile(after), lambda m: self.sum_of_money(m, 4, 2, 3), "0")

    def sum_of_money(self, match: Match, sign: int, amount: int, scale: int) -> str:
        """A sum of money in words."""
        number, nouns = self.parse(match[1] + match[amount]), self.currencies[match[sign]]
        words = self.sum_in_words(number, nouns, match[scale])
        return self.join(words, self.per(match["per"])) if match["per"] else words

    def sum_in_words(self, number: Number, nouns: list[Noun], scale: str | None) -> str:
        """A sum of money, with ``scale`` such as ``million``."""
        if not scale:
            return self.money(number, nouns)
        forms = self.rules.scales[scale]
        return self.join(
            self.say(number, Noun.parse(forms).gender), self.scaled(forms, number, nouns[0])
        )

    def scaled(self, scale: str, number: Number, noun: Noun) -> str:
        """``million dollars``: a scale has forms like a noun."""
        return self.join(
            self.form(number, Noun.parse(scale)), noun.forms[min(1, len(noun.forms) - 1)]
        )

    def money(self, number: Number, nouns: list[Noun]) -> str:
        """Large and small units, if there are two decimals."""
        if len(number.decimals) != 2 or len(nouns) < 2:
            return self.count(number, nouns[0])
        whole = Number(number.whole, minus=number.minus)
        small = Number(number.decimals.lstrip("0"))
        if not small.whole:
            return self.count(whole, nouns[0])
        if not int(number.whole) and not number.minus:
            return self.count(small, nouns[1])
        return self.join(
            self.count(whole, nouns[0]), self.phrase("money_and"), self.count(small, nouns[1])
        )

    # Plain numbers and signs

    def number_patterns(self) -> Iterator[Pattern]:
        """Fractions, powers, ratios, ranges, signs of arithmetic, and plain numbers."""
        yield Pattern(SCIENTIFIC, self.scientific, "0")
        yield Pattern(POWER, self.power, "^")
        yield Pattern(CHARACTERS, lambda m: self._spaced(self.rules.symbols.get(m[1])), "²³")
        yield Pattern(FRACTION, self.fraction, "/")
        yield Pattern(RATIO, self.ratio, ":")
        yield from self.ordinal_patterns()
        yield from self.arithmetic_patterns()
        number = rf"{BEFORE}{self.number}"
        between = re.compile(rf"{number} ?[-~] ?{self.number}(?![\d-])")
        yield Pattern(between, self.interval, "-~")
        yield from self.plain_patterns()

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """Ordinals written with figures."""
        yield from ()

    def plain_patterns(self) -> Iterator[Pattern]:
        """Numbers that no other pattern has read; the last pattern reads all digits."""
        decimals = rf"(?<![\w.,])({self.sign}{re.escape(self.rules.decimal)}\d+)"
        yield Pattern(re.compile(decimals), lambda m: self.decimal_alone(m), "0")
        # "COVID-19" and "H.323" are read without the sign
        letter = "[a-zA-Z]" if self.unspaced else r"[^\W\d_]"
        coded = re.compile(rf"(?<={letter})[-.](?=\d)|(?<=\d)-(?=[^\W\d_])")
        yield Pattern(coded, lambda m: " ", "-.")
        yield Pattern(re.compile(rf"{BEFORE}{self.sign}{self.number}"), self.plain, "0")
        yield Pattern(re.compile(r"\d+"), lambda m: self.say(Number(m[0])), "0")

    def decimal_alone(self, match: Match) -> str:
        """``.25``."""
        minus = match[1].startswith("-")
        return self.say(Number("0", match[1].lstrip("-.,"), minus))

    def plain(self, match: Match) -> str | None:
        """A number alone."""
        return self.say(self.parse(match[0]))

    def fraction(self, match: Match) -> str:
        """``1/2`` and ``2 1/2``; others are read with the name of the slash."""
        return self.fraction_in_words(*match.groups())

    def fraction_in_words(self, whole: str | None, above: str, below: str) -> str:
        """``two and a half``; a whole number is optional."""
        words = self.rules.fractions.get(f"{above}/{below}") or self.fraction_words(above, below)
        if whole:
            words = self.join(cardinal(whole, self.language), self.phrase("and"), words)
        return words

    def fraction_words(self, above: str, below: str) -> str:
        """A fraction that is not in the rules."""
        return self.join(
            cardinal(above, self.language), self.phrase("over"), cardinal(below, self.language)
        )

    def ratio(self, match: Match) -> str | None:
        """``3:2``."""
        return self.join(
            cardinal(match[1], self.language),
            self.phrase("ratio"),
            cardinal(match[2], self.language),
        )

    def interval(self, match: Match) -> str | None:
        """``10-20``; two numbers of four digits are years."""
        parts = [part.strip() for part in re.split("[-~]", match[0])]
        years = all(re.fullmatch(r"1[1-9]\d\d|20\d\d", part) for part in parts)
        say = self.year if years else (lambda text: self.say(self.parse(text)))
        return self.join(say(parts[0]), self.phrase("to"), say(parts[1]))

    def power(self, match: Match) -> str | None:
        """``^2``."""
        return " " + self.join(self.phrase("power"), self.say(self.parse(match[1])))

    def scientific(self, match: Match) -> str | None:
        """``1e6``."""
        exponent = Number(match[3], minus=match[2] == "-")
        ten = self.join(self.phrase("times"), cardinal("10", self.language))
        return self.join(
            self.say(self.parse(match[1])), ten, self.phrase("power"), self.say(exponent)
        )

    def arithmetic_patterns(self) -> Iterator[Pattern]:
        """Signs between numbers and letters."""
        signs = {"=": "equals", "×": "times", "÷": "divided", "≈": "about", "±": "plus_minus"}
        signs |= {"√": "root", "≤": "at_most", "≥": "at_least", "≠": "not_equal"}
        names = {sign: self.phrase(name) for sign, name in signs.items() if self.phrase(name)}
        for sign, name in names.items():
            yield Pattern(re.compile(re.escape(sign)), read_as(self._spaced(name)), sign)
        for expression, name, sign in (
            (
                r"(?<=\d) - (?=\d[\d.,]{0,20} ?=)|(?<=\d) - (?=\d{1,9} [a-z ]{0,30}\bequals)",
                "minus",
                "-",
            ),
            (r"(?<=\d) ?\+ ?(?=[\d√(])|(?<=\w) \+ (?=\w)|(?<![\w+])\+(?=\d)", "plus", "+"),
            (r"(?<=\d)\+(?=\s)", "plus", "+"),
            (r"(?<=\d) ?[x*] ?(?=\d)", "times", "x*"),
            (r"(?<=\d)x(?= [^\W\d_])", "fold", "x"),
            (r"(?<=\w) < (?=\w)|(?<=\d)<(?=\d)", "less", "<"),
            (r"(?<=\w) > (?=\w)|(?<=\d)>(?=\d)", "greater", ">"),
        ):
            if self.phrase(name):
                spoken = read_as(self._spaced(self.phrase(name)))
                yield Pattern(re.compile(expression), spoken, sign)

    def sign_patterns(self) -> Iterator[Pattern]:
        """Names of signs; a sign without a name stays, and is reported as unread."""
        symbols = self.rules.symbols
        hashtag = self.phrase("hashtag")
        if hashtag:
            expression = re.compile(r"(?<![\w#&])#(?=[^\W\d_])")
            yield Pattern(expression, lambda m: f"{hashtag} ", "#")
        expression = re.compile(either(symbols))
        yield Pattern(expression, lambda m: self._spaced(symbols[m[0]]))
        joined = re.compile(r"(?<=[^\W\d_])/(?=[^\W\d_])")
        yield Pattern(joined, lambda m: " ", "/")

    def _spaced(self, name: str | None) -> str | None:
        return name if name is None or self.unspaced else f" {name} "

    def _replace(self, pattern: Pattern, text: str) -> str:
        """``text`` with all matches read; words are kept apart from letters beside them."""

        def read(match: Match) -> str:
            spoken = pattern.read(match)
            if spoken is None:
                return match[0]
            before, after = (
                text[match.start() - 1 : match.start()],
                text[match.end() : match.end() + 1],
            )
            head = " " if self.apart(before, spoken[:1]) else ""
            return head + spoken + (" " if self.apart(spoken[-1:], after) else "")

        return pattern.expression.sub(read, text)

    def apart(self, left: str, right: str) -> bool:
        """Whether two characters need a space between them."""
        both = left.isalnum() and right.isalnum()
        return both and not (self.unspaced and (ord(left) > 0x2E80 or ord(right) > 0x2E80))
