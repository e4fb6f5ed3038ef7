"""The grammars of German, French, Spanish, Italian and Portuguese."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tts_assets.normalization.grammar import Grammar
from tts_assets.normalization.numbers import cardinal
from tts_assets.normalization.rules import (
    BEFORE,
    SIGN,
    Match,
    Noun,
    Number,
    Pattern,
    either,
    roman_value,
)


class German(Grammar):
    """German: years in hundreds, ordinals that agree with the word before them."""

    more_words = (r"[sS]tr\.",)

    STRONG = (
        "am|vom|zum|im|beim|dem|den|des|bis|ab|seit|einem|einen|eines|jedem|jeden|diesem|diesen"
    )
    WEAK = "der|die|das|jede|diese|dieser|eine|welche"

    def year(self, digits: str) -> str:
        """``neunzehnhundertvierundachtzig``."""
        if len(digits) == 2:
            digits = f"20{digits}"
        if len(digits) == 4 and "1100" <= digits < "2000":
            rest = cardinal(digits[2:], "de") if digits[2:] != "00" else ""
            return f"{cardinal(digits[:2], 'de')}hundert{rest}"
        return cardinal(digits, "de")

    def ordinal(self, digits: str, form: str = "") -> str:
        """``dritte`` with the ending of ``form``."""
        stem = (
            super()
            .ordinal(digits)
            .removeprefix("ein" if digits[:1] == "1" and len(digits) > 2 else "")
        )
        return stem.removesuffix("e") + (form or "e")

    def ending(self, before: str) -> str:
        """The ending of an ordinal after the text before it."""
        if re.search(rf"\b(?:{self.STRONG})(?: [A-Z]\w+,)? $", before, re.IGNORECASE):
            return "en"
        return "e" if re.search(rf"\b(?:{self.WEAK}) $", before, re.IGNORECASE) else "er"

    def first_patterns(self) -> Iterator[Pattern]:
        """``Hauptstr.``."""
        yield Pattern(re.compile(r"(?<=[a-zäöüß])str\."), lambda m: "straße", "s")
        yield Pattern(re.compile(r"(?<=[ -])Str\."), lambda m: "Straße", "S")
        units = either(name for name in self.units if name.isalpha())
        compound = rf"{BEFORE}({self.number})-({units})(?=-[A-ZÄÖÜ][a-zäöü])"
        yield Pattern(re.compile(compound), self.compound, "-")

    def compound(self, match: Match) -> str:
        """``10-km-Lauf``."""
        return f"{self.say(self.parse(match[1]))}-{self.units[match[2]].forms[0]}"

    def reign(self, match: Match) -> str | None:
        """``Ludwig der vierzehnte``."""
        return f"{match[1]} der {self.ordinal(str(roman_value(match[2])))}"

    def roman_patterns(self) -> Iterator[Pattern]:
        """A reign has a dot: ``Ludwig XIV.``."""
        names = either(self.rules.regnal)
        dotted = rf"\b({names}) ([IVX]{{1,5}})\b\.?"
        yield Pattern(re.compile(dotted), self.reign, "IVX")
        yield from super().roman_patterns()

    def date_patterns(self) -> Iterator[Pattern]:
        """``am 3. Mai``, ``24.12.2023``, ``12.05.``."""
        yield from super().date_patterns()
        months = either(name.capitalize() for name in self.months)
        named = rf"{BEFORE}(\d{{1,2}})\. ({months})\b\.?(?: (\d{{4}})(?![.,]\d))?"
        yield Pattern(re.compile(named), self.named_date, "0")
        short = r"(?<![\d.,])(0?[1-9]|[12]\d|3[01])\.(0?[1-9]|1[0-2])\.(?!\d)"
        yield Pattern(re.compile(short), self.short_date, "0")
        counted = rf"\b({self.STRONG}|{self.WEAK}) (\d{{1,3}})\.(?= [A-ZÄÖÜa-zäöü])"
        yield Pattern(re.compile(counted, re.IGNORECASE), self.counted, "0")

    def named_date(self, match: Match) -> str:
        """``am dritten Mai zweitausendfünfundzwanzig``."""
        day = self.ordinal(match[1], self.ending(match.string[: match.start()]))
        name = self.rules.months[self.months[match[2].lower()] - 1]
        return self.join(day, name, self.year(match[3]) if match[3] else "")

    def short_date(self, match: Match) -> str:
        """``zwölfter fünfter``."""
        ending = self.ending(match.string[: match.start()])
        return " ".join(self.ordinal(part.lstrip("0"), ending) for part in match.groups())

    def date_in_figures(self, match: Match) -> str | None:
        """The day agrees with the word before it; the month is named."""
        words = super().date_in_figures(match)
        if words is None:
            return None
        day, _, rest = words.partition(" ")
        ending = self.ending(match.string[: match.start()])
        return f"{day.removesuffix('en')}{ending} {rest}"

    def date(self, day: str, month: int, year: str) -> str:
        """``dritten Mai zweitausendfünfundzwanzig``."""
        return f"{self.ordinal(day, 'en')} {self.rules.months[month - 1]} {self.year(year)}"

    def counted(self, match: Match) -> str:
        """``im dritten Stock``."""
        return f"{match[1]} {self.ordinal(match[2], self.ending(match[1] + ' '))}"

    def clock_patterns(self) -> Iterator[Pattern]:
        """``9:30 Uhr``, ``18.00 Uhr``; without "Uhr", the word is added."""
        clock = (
            r"(?<![\d:.,])([01]?\d|2[0-4])(?::|\.(?=\d\d ?Uhr))([0-5]\d)(?![\d:.]\d)(?: ?Uhr\b)?"
        )
        yield Pattern(re.compile(clock), self.clock, ":.")

    def clock(self, match: Match) -> str:
        """``neun Uhr dreißig``."""
        hour = self.say(Number(str(int(match[1]))), "m")
        minute = cardinal(match[2], "de") if int(match[2]) else ""
        return self.join(hour, "Uhr", minute)

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """Decades and years."""
        decade = re.compile(r"(?<![\w.,])(\d{2}|\d{4})er\b")
        yield Pattern(
            decade,
            lambda m: f"{self.year(m[1]) if len(m[1]) == 4 else cardinal(m[1], 'de')}er",
            "0",
        )
        years = r"(?<![\w.,€$:/-])(1[1-9]\d\d)(?![\w%]|[,.:/]\d| ?[-+*=/x] ?\d)"
        yield Pattern(re.compile(years), lambda m: self.year(m[1]), "0")

    def fraction_words(self, above: str, below: str) -> str:
        """``drei Viertel``."""
        if not 2 < int(below) <= 100:
            return super().fraction_words(above, below)
        stem = super().ordinal(below).removesuffix("e")
        return self.join(self.say(Number(above), "m"), f"{stem.capitalize()}el")


class Romance(Grammar):
    """What French, Spanish, Italian and Portuguese share."""

    first_day = ""  # of a month, where it is an ordinal
    of = ""  # between day, month and year
    feminine_endings = ("ª", "a")

    def date(self, day: str, month: int, year: str) -> str:
        """``3 de mayo de 2020``."""
        if len(year) == 2:
            year = f"20{year}"
        first = (
            self.first_day if int(day) == 1 and self.first_day else cardinal(day, self.language, "")
        )
        of = f" {self.of} " if self.of else " "
        return f"{first}{of}{self.rules.months[month - 1]}{of}{self.year(year)}"

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """``2º``, ``1.ª``, ``3°``."""
        expression = rf"{BEFORE}(\d{{1,3}})\.?([ºª°])(?!\w)"
        yield Pattern(re.compile(expression), self.ordinal_sign, "ºª°")
        if self.phrase("feminine_nouns"):
            nouns = self.phrase("feminine_nouns")
            counted = rf"{BEFORE}({SIGN}{self.number})(?= (?:{nouns})\b)"
            yield Pattern(re.compile(counted), lambda m: self.say(self.parse(m[1]), "f"), "0")

    def ordinal_sign(self, match: Match) -> str:
        """An ordinal with its sign of gender."""
        return self.ordinal(match[1], "f" if match[2] == "ª" else "m")

    def ordinal(self, digits: str, form: str = "") -> str:
        """An ordinal with its gender."""
        words = super().ordinal(digits)
        return (
            " ".join(f"{word.removesuffix('o')}a" for word in words.split())
            if form == "f"
            else words
        )

    def fraction_words(self, above: str, below: str) -> str:
        """``tres cuartos``, of the names of the parts in the rules."""
        part = self.rules.fractions.get(f"1/{below}", "").rpartition(" ")[2]
        if not part:
            return super().fraction_words(above, below)
        return self.join(cardinal(above, self.language), part if part.endswith("s") else f"{part}s")


class French(Romance):
    """French: the first of a month, hours with ``h``, ordinals in ``e``."""

    more_words = (r"\b[IVXL]+(?:e|ème|er)\b",)
    first_day = "premier"

    def plural(self, number: int) -> int:
        """Zero and one take the singular."""
        return int(number > 1)

    def form(self, number: Number, noun: Noun) -> str:
        """Below two the singular, also with decimals."""
        return noun.forms[min(self.plural(int(number.whole[-9:])), len(noun.forms) - 1)]

    def reign(self, match: Match) -> str | None:
        """``Louis quatorze``, but ``Napoléon premier``."""
        number = str(roman_value(match[2]))
        return f"{match[1]} {'premier' if number == '1' else cardinal(number, 'fr')}"

    def century(self, match: Match) -> str | None:
        """Written ``XXe``; see :meth:`roman_patterns`."""
        return self.ordinal(str(roman_value(match[1])))

    def roman_patterns(self) -> Iterator[Pattern]:
        """``XXe siècle``, ``Ier``."""
        expression = re.compile(r"(?<!\w)([IVX]{1,5})(?:e|ème|er)\b")
        yield Pattern(expression, lambda m: self.ordinal(str(roman_value(m[1]))), "IVX")
        yield from super().roman_patterns()

    def clock_patterns(self) -> Iterator[Pattern]:
        """``9h30``, ``17 h``, ``20:15``."""
        clock = r"(?<![\d:.,/])([01]?\d|2[0-4]) ?h ?([0-5]\d)?(?!\w)"
        yield Pattern(re.compile(clock), self.clock, "h")
        yield from super().clock_patterns()

    def clock(self, match: Match) -> str:
        """``vingt heures quinze``."""
        hour, minute = int(match[1]), int(match[2] or 0)
        hours = self.count(Number(str(hour)), Noun.parse("heure|heures:f"))
        return self.join(hours, cardinal(str(minute), "fr") if minute else "")

    def phone(self, match: Match) -> str | None:
        """Pairs of digits are numbers: ``01 23`` is "zéro un vingt-trois"."""
        groups = re.findall(r"\d+", match[0])
        if len(groups) < 5 or any(len(group) != 2 for group in groups):
            return super().phone(match)
        return ", ".join(self.say(Number(group)) for group in groups)

    def ordinal(self, digits: str, form: str = "") -> str:
        """``première`` for the feminine of one."""
        if digits == "1":
            return "première" if form == "f" else "premier"
        return Grammar.ordinal(self, digits)

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """``1er``, ``2e``, ``21ème``."""
        expression = rf"{BEFORE}(\d{{1,4}})(er|re|ère|ième|ème|nde|nd|e)\b"
        feminine = ("re", "ère", "nde")
        yield Pattern(
            re.compile(expression),
            lambda m: self.ordinal(m[1], "f" if m[2] in feminine else "m"),
            "0",
        )
        yield from super().ordinal_patterns()

    def scaled(self, scale: str, number: Number, noun: Noun) -> str:
        """``millions d'euros``."""
        plural = noun.forms[-1]
        of = "d'" if plural[0] in "aeiouyéh" else "de "
        return f"{self.form(number, Noun.parse(scale))} {of}{plural}"


class Spanish(Romance):
    """Spanish: ``de`` in dates, apocope before masculine nouns."""

    of = "de"

    def clock(self, match: Match) -> str:
        """``las nueve y treinta``."""
        minute = int(match[2])
        words = cardinal(str(int(match[1])), "es", "f" if int(match[1]) in (1, 21) else "")
        return self.join(words, "y " + cardinal(str(minute), "es") if minute else "en punto")

    def clock_patterns(self) -> Iterator[Pattern]:
        """``17:05 h``."""
        clock = r"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?![\d:])(?: ?h\b\.?)?"
        yield Pattern(re.compile(clock), self.clock, ":")

    def century(self, match: Match) -> str | None:
        """Centuries follow their word in Spanish."""
        return None

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """One before a masculine noun: ``veintiún años``."""
        yield from super().ordinal_patterns()
        short = {"1": "primer", "3": "tercer"}
        yield Pattern(re.compile(r"(?<![\d.,])([13])\.?er\b"), lambda m: short[m[1]], "13")
        yield Pattern(
            re.compile(r"(?<![\d.,])(\d{0,6}1)(?= [a-zñ]+os\b)"),
            lambda m: cardinal(m[1], "es", "m"),
            "1",
        )


class Italian(Romance):
    """Italian: the first of a month, ``e`` between hours and minutes."""

    first_day = "primo"

    def clock(self, match: Match) -> str:
        """``nove e trenta``."""
        minute = int(match[2])
        hour = cardinal(str(int(match[1])), "it")
        return self.join(hour, f"e {cardinal(str(minute), 'it')}" if minute else "")

    def century(self, match: Match) -> str | None:
        """``XX secolo``."""
        return self.ordinal(str(roman_value(match[1])))

    def first_patterns(self) -> Iterator[Pattern]:
        """``gli anni '90``."""
        yield Pattern(re.compile(r"(?<!\w)'(\d0)\b"), lambda m: cardinal(m[1], "it"), "'")


class Portuguese(Romance):
    """Portuguese: ``de`` in dates, ``9h30``."""

    of = "de"

    def clock_patterns(self) -> Iterator[Pattern]:
        """``9h30``, ``20h``, ``17:05``."""
        clock = r"(?<![\d:.,/])([01]?\d|2[0-4])(?: ?h ?([0-5]\d)?(?:min)?|:([0-5]\d))(?![\w:])"
        yield Pattern(re.compile(clock), self.clock, "h:")

    def clock(self, match: Match) -> str:
        """``nove horas e trinta``; with a colon without "horas"."""
        hour, minute = int(match[1]), int(match[2] or match[3] or 0)
        colon = match[3] is not None and minute
        hours = cardinal(str(hour), "pt", "f")
        if not colon:
            hours = self.count(Number(str(hour)), Noun.parse("hora|horas:f"))
        return self.join(hours, f"e {cardinal(str(minute), 'pt')}" if minute else "")

    def century(self, match: Match) -> str | None:
        """Centuries follow their word in Portuguese."""
        return None
