"""The grammar of English."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tts_assets.normalization.grammar import Grammar
from tts_assets.normalization.numbers import cardinal, spell
from tts_assets.normalization.rules import (
    BEFORE,
    Match,
    Noun,
    Number,
    Pattern,
    either,
    roman_value,
)

HALF_DAY = r"(?: ?([ap])\.?m\b\.?| ?([AP])\.?M\b\.?)"


class English(Grammar):
    """English: years in pairs, ordinals in dates, twelve hours, feet and inches."""

    more_words = (r"\bSt\b",)

    def year(self, digits: str) -> str:
        """``nineteen eighty-four``, ``two thousand eight``, ``nineteen oh five``."""
        if len(digits) != 4 or digits[0] not in "12" or digits[1:3] == "00":
            return cardinal(digits, "en")
        century = cardinal(digits[:2], "en")
        if digits[2:] == "00":
            return f"{century} hundred"
        low = f"oh {cardinal(digits[3], 'en')}" if digits[2] == "0" else cardinal(digits[2:], "en")
        return f"{century} {low}"

    def first_patterns(self) -> Iterator[Pattern]:
        """What depends on several words: streets, decades, feet and inches."""
        yield Pattern(re.compile(r"\b[vV]\.? ?(?=\d+(?:\.\d+)*\b)"), lambda m: "version ", "vV")
        street = r"(?<=[a-z] )St\.?(?=$|[,;:!?]|\.?$| (?:[a-z]|[NSEW]\b))|(?<=[a-z] )St\.(?=\s*$)"
        yield Pattern(re.compile(street), lambda m: "Street", "S")
        yield Pattern(re.compile(r"\bSt\.? (?=[A-Z])"), lambda m: "Saint ", "S")
        number_of_house = r"^(\d)(\d\d)(?= [A-Z][a-z]+ (?:Street|St\b|Ave|Road|Rd\b|Blvd))"
        yield Pattern(re.compile(number_of_house), self.house, "0")
        feet = r"(?<![\w.])(\d{1,2}) ?' ?(\d{1,2}) ?(?:\"|'')"
        yield Pattern(re.compile(feet), self.feet, "'")
        decade = r"(?:(?<![\w.,-])|(?<=[a-z]-))(?:(\d\d)|'|(?=\d0'?s))(\d)0'?s\b"
        yield Pattern(re.compile(decade), self.decade, "0")
        yield Pattern(re.compile(r"(?<![\w'])'(0\d)(?![\w'])"), self.short_year, "'")
        yield Pattern(re.compile(r"(?<=\b[A-Z]-)(\d{1,3})s\b"), self.several, "0")
        yield from self.more_first_patterns()
        called = r"(?<=\b[Cc]all |\b[Dd]ial )(\d11)\b(?![-,.]?\d)"
        yield Pattern(re.compile(called), lambda m: spell(m[1], "en"), "0")

    def more_first_patterns(self) -> Iterator[Pattern]:
        """Drives, ranges of days and hours, seasons, units in compounds."""
        drive = r"\b((?:\d{1,5}[A-Z]?|on|at|along|near|off|down) (?:[A-Z][a-z]+ ){1,2})"
        drive += r"Dr\b\.?(?! [A-Z])"
        yield Pattern(re.compile(drive), lambda m: f"{m[1]}Drive", "D")
        days = r"(?<=\d(?:st|nd|rd|th))-(?=\d{1,3}(?:st|nd|rd|th)\b)"
        hours = r"(?:(?<=\d[ap]m)|(?<=\d [ap]m)) ?- ?(?=\d)|(?<=[ap]\.m\.) ?- ?(?=\d)"
        hours += r"|(?<=\d)-(?=(?:1[0-2]|[1-9])(?::[0-5]\d)? ?[ap]\.?m\b)"
        yield Pattern(re.compile(f"{days}|{hours}"), lambda m: " to ", "-")
        season = r"(?<![\w.,$€£#:/-])(1[5-9]\d\d|20\d\d)/(\d\d)(?![\w/]|[.,]\d)"
        yield Pattern(re.compile(season), self.season, "/")
        yield Pattern(re.compile(r"\bc\. ?(?=1\d{3}\b(?![.,]\d))"), lambda m: "circa ", "c")
        names = either(name for name in self.units if name.isalpha() and name not in "sAhJl")
        compound = rf"{BEFORE}({self.number})-({names})(?=[ -][^\W\d_])"
        yield Pattern(re.compile(compound), self.compound, "-")

    def short_year(self, match: Match) -> str:
        """``class of '05``."""
        return spell(match[1], "en").replace("zero", "oh", 1)

    def several(self, match: Match) -> str:
        """``F-16s``: the plural of a number."""
        words = cardinal(match[1], "en")
        if words.endswith("y"):
            return f"{words[:-1]}ies"
        return f"{words}es" if words.endswith("x") else f"{words}s"

    def season(self, match: Match) -> str:
        """``2023/24``: a year, and the last two digits of the next one."""
        last = match[2]
        low = spell(last, "en").replace("zero", "oh", 1) if last[0] == "0" else cardinal(last, "en")
        return f"{self.year(match[1])} {low}"

    def compound(self, match: Match) -> str:
        """``a 10-km run``: the unit is in the singular."""
        number = self.parse(match[1])
        return f"{self.say(number)} {self.units[match[2]].forms[0]}"

    def roman(self, match: Match) -> str | None:
        """Not the ``IV`` of medicine."""
        before, after = match.string[: match.start()], match.string[match.end() :]
        medical = before.endswith(("an ", "An ")) or re.match(r" (?:drip|fluid|bag|line)", after)
        return None if match[1] == "IV" and medical else super().roman(match)

    def house(self, match: Match) -> str:
        """The number of a house: ``one twenty-three``."""
        rest = match[2]
        low = f"oh {cardinal(rest[1], 'en')}" if rest[0] == "0" else cardinal(rest, "en")
        return f"{cardinal(match[1], 'en')} {'hundred' if rest == '00' else low}"

    def feet(self, match: Match) -> str:
        """``5'11"``."""
        feet = self.count(Number(match[1]), Noun.parse("foot|feet"))
        return f"{feet} {self.count(Number(match[2]), Noun.parse('inch|inches'))}"

    def decade(self, match: Match) -> str | None:
        """``the 1990s`` and ``the '80s``."""
        ten = match[2]
        names = ["hundreds", "tens", "twenties", "thirties", "forties", "fifties", "sixties"]
        name = [*names, "seventies", "eighties", "nineties"][int(ten)]
        if not match[1]:
            return name if int(ten) > 1 else None
        if match[1] == "20" and ten == "0":
            return "two thousands"
        return f"{cardinal(match[1], 'en')} {name}"

    def reign(self, match: Match) -> str | None:
        """``Henry the eighth``."""
        if match[2] == "I" and not re.match(
            r"\s*(?:$|[,.;:!?')]|was|of|and|had)", match.string[match.end() :]
        ):
            return None
        return f"{match[1]} the {self.ordinal(str(roman_value(match[2])))}"

    def century(self, match: Match) -> str | None:
        """``the XX century``; not the pronoun."""
        return None if match[1] == "I" else super().century(match)

    def date_patterns(self) -> Iterator[Pattern]:
        """Dates in figures, and a month with a day before or after it."""
        yield from super().date_patterns()
        months = either({name.capitalize() for name in self.months})
        month, year = rf"\b({months})\b\.?", r"(?:,? (\d{4})(?![\d,]\d|[.:]\d))?"
        after = rf"{month} (\d{{1,2}})(?:st|nd|rd|th)?(?![\d:.]\d|\d|-\d){year}"
        several = rf"{month} (\d{{1,2}})-(\d{{1,2}})(?![\d-]){year}"
        yield Pattern(re.compile(several), self.days, "-")
        before = rf"(?<![\w.,:])(?:[Tt]he )?(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{month}{year}"
        yield Pattern(re.compile(after), lambda m: self.day(m[1], m[2], m[3], False), "0")
        yield Pattern(re.compile(before), lambda m: self.day(m[2], m[1], m[3], True), "0")

    def days(self, match: Match) -> str | None:
        """``June third to fifth``."""
        month, first, last, year = match.groups()
        if not 1 <= int(first) < int(last) <= 31:
            return None
        words = f"{self.rules.months[self.months[month.lower()] - 1]} {self.ordinal(first)}"
        words += f" to {self.ordinal(last)}"
        return f"{words}, {self.year(year)}" if year else words

    def day(self, month: str, day: str, year: str | None, day_first: bool) -> str | None:
        """``March fourth twenty twenty-five`` or ``the fourth of March``."""
        if not 1 <= int(day) <= 31:
            return None
        name = self.rules.months[self.months[month.lower()] - 1]
        words = f"the {self.ordinal(day)} of {name}" if day_first else f"{name} {self.ordinal(day)}"
        return f"{words}, {self.year(year)}" if year else words

    def date(self, day: str, month: int, year: str) -> str:
        """``March fourth, twenty twenty-five``."""
        year = f"20{year}" if len(year) == 2 else year
        return f"{self.rules.months[month - 1]} {self.ordinal(day)}, {self.year(year)}"

    def clock_patterns(self) -> Iterator[Pattern]:
        """``9:30``, ``9:30 p.m.``, ``7pm``."""
        clock = rf"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?![\d:]){HALF_DAY}?"
        yield Pattern(re.compile(clock), self.clock, ":")
        hour = rf"(?<![\w.,:])(1[0-2]|[1-9])()(){HALF_DAY}"
        yield Pattern(re.compile(hour), self.clock, "mM")

    def clock(self, match: Match) -> str | None:
        """``oh`` before a single minute, ``o'clock`` without minutes."""
        hour, minute, second = (int(part or 0) for part in match.groups()[:3])
        half = (match[4] or match[5] or "").lower()
        if match[3]:
            return self.clock_with_units(hour, minute, second)
        words = cardinal(str(hour), "en")
        if minute:
            words += f" {'oh ' if minute < 10 else ''}{cardinal(str(minute), 'en')}"
        if half:
            return f"{words} {half}.m."
        return words if minute else f"{words} o'clock"

    def clock_with_units(self, hour: int, minute: int, second: int = 0) -> str:
        """A duration: hours, minutes and seconds."""
        names = ("hour|hours", "minute|minutes", "second|seconds")
        parts = [
            self.count(Number(str(value)), Noun.parse(name))
            for value, name in zip((hour, minute, second), names, strict=True)
            if value
        ]
        return " ".join(parts[:-1] + (["and"] if len(parts) > 1 else []) + parts[-1:])

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """``21st``, ``#5``, plain years, ``4th``."""
        yield Pattern(re.compile(r"#\s?(?=\d)"), lambda m: "number ", "#")
        expression = re.compile(rf"{BEFORE}(\d{{1,3}}(?:,\d{{3}})+|\d{{1,9}})(?:st|nd|rd|th)\b")
        yield Pattern(expression, lambda m: self.ordinal(m[1].replace(",", "")), "0")
        years = r"(?<![\w.,$€£#:/-])(?<!- )(1[1-9]\d\d|10[1-9]\d|20\d\d)"
        years += r"(?![\w%]|[,.:/]\d| ?[-+*=/x] ?\d)"
        in_pairs = r"(?<![\w.,$€£#:/-])(1[1-9]\d\d)-(1[1-9]\d\d|20\d\d)(?![\w-])"
        yield Pattern(
            re.compile(in_pairs), lambda m: f"{self.year(m[1])} to {self.year(m[2])}", "-"
        )
        yield Pattern(re.compile(years), self.year_alone, "0")

    def year_alone(self, match: Match) -> str | None:
        """A number of four digits as a year, unless it counts what follows it."""
        before, after = match.string[: match.start()], match.string[match.end() :]
        counts = re.match(r" (?!was|is|has|does|its|as|us\b|this)[a-z]+[a-rt-z]s\b", after)
        dated = re.search(
            r"\b(?:in|since|by|from|until|till|of|before|after|year|and|to|during) $", before, re.I
        )
        return None if counts and not dated else self.year(match[1])

    def fraction_in_words(self, whole: str | None, above: str, below: str) -> str:
        """``two and a half``."""
        words = super().fraction_in_words(whole, above, below)
        return words.replace(" and one half", " and a half").replace(" and one q", " and a q")

    def fraction_words(self, above: str, below: str) -> str:
        """``five eighths``; a large denominator is read with "over"."""
        if not 1 < int(below) <= 100 or int(above) >= int(below):
            return super().fraction_words(above, below)
        name = {"2": "half", "4": "quarter"}.get(below) or self.ordinal(below)
        plural = {"half": "halves"}.get(name, f"{name}s")
        return f"{cardinal(above, 'en')} {name if int(above) == 1 else plural}"
