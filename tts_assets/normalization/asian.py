"""The grammars of Chinese, Japanese, Korean and Hindi."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from tts_assets.normalization.grammar import Grammar
from tts_assets.normalization.numbers import HINDI, cardinal, spell
from tts_assets.normalization.rules import (
    BEFORE,
    Match,
    Noun,
    Number,
    Pattern,
)


class EastAsian(Grammar):
    """What Chinese, Japanese and Korean share: dates by signs, no spaces, large scales."""

    unspaced: ClassVar[bool] = True
    date_signs: ClassVar[tuple[str, str, str]] = ("年", "月", "日")
    parts_of = "分之"

    def date(self, day: str, month: int, year: str) -> str:
        """Year, month and day with their signs."""
        signs = self.date_signs
        return (
            f"{self.year(year)}{signs[0]}{cardinal(str(month), self.language)}{signs[1]}"
            f"{cardinal(day, self.language)}{signs[2]}"
        )

    def fraction_words(self, above: str, below: str) -> str:
        """The denominator comes first."""
        return cardinal(below, self.language) + self.parts_of + cardinal(above, self.language)

    def scaled(self, scale: str, number: Number, noun: Noun) -> str:
        """No forms."""
        return scale + noun.forms[0]

    def roman_patterns(self) -> Iterator[Pattern]:
        """Roman numbers are read as letters."""
        yield from ()


class Chinese(EastAsian):
    """Mandarin."""

    COUNTED = "个位名只条张本件次台辆块人天年岁口家头匹杯瓶双种层座所间斤"

    def year(self, digits: str) -> str:
        """Digit by digit."""
        return spell(digits, "zh")

    def say(self, number: Number, gender: str = "") -> str:
        """两 before counted nouns."""
        if gender and number.whole == "2" and not number.decimals and not number.minus:
            return "两"
        return super().say(number, gender)

    def count(self, number: Number, noun: Noun) -> str:
        """Percentages come after their name; below zero degrees have their own word."""
        if noun.forms[0] == "百分之":
            minus = self.phrase("minus") if number.minus else ""
            return f"{minus}百分之{self.say(Number(number.whole, number.decimals))}"
        if "摄氏度" in noun.forms[0] and number.minus:
            return f"零下{self.say(Number(number.whole, number.decimals))}{noun.forms[0]}"
        return self.say(number) + noun.forms[0]

    def date_patterns(self) -> Iterator[Pattern]:
        """Years are digits."""
        yield Pattern(
            re.compile(r"(?<!\d)(\d{4})(?=年(?!代?[以多]))"), lambda m: spell(m[1], "zh"), "年"
        )
        yield from super().date_patterns()

    def clock(self, match: Match) -> str:
        """``九点三十分``."""
        hour, minute = cardinal(str(int(match[1])), "zh"), int(match[2])
        hour = "两" if hour == "二" else hour
        if not minute:
            return f"{hour}点"
        return f"{hour}点{'零' if minute < 10 else ''}{cardinal(str(minute), 'zh')}分"

    def quantity_patterns(self) -> Iterator[Pattern]:
        """Also counted nouns, rooms and mobile numbers."""
        mobile = r"(?<![\d.,])(1[3-9]\d{9})(?!\d)"
        yield Pattern(re.compile(mobile), lambda m: spell(m[1], "zh"), "1")
        yield Pattern(
            re.compile(r"(?<=房间|号码|密码|电话|拨打)(\d{3,9})(?!\d)"),
            lambda m: spell(m[1], "zh"),
            "0",
        )
        yield from super().quantity_patterns()
        counted = rf"{BEFORE}(?<!第)2(?=[{self.COUNTED}])"
        yield Pattern(re.compile(counted), lambda m: "两", "2")


class Japanese(EastAsian):
    """Japanese, in Chinese characters."""

    parts_of = "分の"

    def clock(self, match: Match) -> str:
        """``九時三十分``."""
        hour, minute = cardinal(str(int(match[1])), "ja"), int(match[2])
        return f"{hour}時" + (f"{cardinal(str(minute), 'ja')}分" if minute else "")

    def quantity(self, match: Match) -> str | None:
        """``120km/h`` has the unit of time before the number."""
        first, second, unit, per = match.groups()
        if per in ("h", "s") and unit in ("km", "m") and not second:
            return ("時速" if per == "h" else "秒速") + self.count(
                self.parse(first), self.units[unit]
            )
        return super().quantity(match)


class Korean(EastAsian):
    """Korean: native numbers before counters below one hundred."""

    date_signs: ClassVar[tuple[str, str, str]] = ("년 ", "월 ", "일")
    parts_of = "분의 "
    NATIVE: ClassVar[str] = "한 두 세 네 다섯 여섯 일곱 여덟 아홉"
    TENS: ClassVar[str] = "열 스물 서른 마흔 쉰 예순 일흔 여든 아흔"
    COUNTERS = (
        "명|살|개|마리|권|번째|시간|시(?!속|장|민|작)|병|잔|대(?=$|[ .,가를의는])|"
        "장(?=$|[ .,을의은이])|벌|송이|그루|켤레|가지|사람"
    )

    def native(self, number: int) -> str:
        """A native number below 100 before a counter."""
        tens, ones = divmod(number, 10)
        if number == 20:
            return "스무"
        words = [self.TENS.split()[tens - 1]] if tens else []
        return "".join([*words, self.NATIVE.split()[ones - 1]] if ones else words)

    def date_patterns(self) -> Iterator[Pattern]:
        """June and October have names of their own."""
        irregular = {"6": "유월", "10": "시월"}
        yield Pattern(re.compile(r"(?<!\d)0?(6|10)월"), lambda m: irregular[m[1]], "월")
        yield from super().date_patterns()

    def clock(self, match: Match) -> str:
        """The hour is native, the minutes are not."""
        hour, minute = int(match[1]), int(match[2])
        hours = f"{self.native(hour)} 시" if 1 <= hour <= 12 else f"{cardinal(str(hour), 'ko')} 시"
        return hours + (f" {cardinal(str(minute), 'ko')} 분" if minute else "")

    def quantity_patterns(self) -> Iterator[Pattern]:
        """Also numbers before counters; a temperature below zero."""
        cold = rf"{BEFORE}(?<![\w)])-({self.number}) ?°C"
        yield Pattern(re.compile(cold), lambda m: f"영하 {self.say(self.parse(m[1]))} 도", "°")
        yield from super().quantity_patterns()
        counters = rf"{BEFORE}(?<![제~-])([1-9]\d?)(?!\d)(?= ?(?:{self.COUNTERS}))"
        yield Pattern(re.compile(counters), self.counted, "0")

    def counted(self, match: Match) -> str | None:
        """A native number, but ``30대`` is an age."""
        if match[1].endswith("0") and match.string[match.end() :].startswith("대"):
            return None
        return self.native(int(match[1])) + " "

    def quantity(self, match: Match) -> str | None:
        """``120km/h`` has the unit of time before the number."""
        first, second, unit, per = match.groups()
        if per == "h" and unit == "km" and not second:
            return f"시속 {self.count(self.parse(first), self.units[unit])}"
        return super().quantity(match)

    def phone(self, match: Match) -> str | None:
        """Zero is 공 in a number to dial."""
        words = super().phone(match)
        return words and words.replace("영", "공")

    def sign_patterns(self) -> Iterator[Pattern]:
        """The particle of the subject follows the last sound before it."""
        yield Pattern(re.compile(r"(\w) ?= ?"), self.equals, "=")
        yield from super().sign_patterns()

    def equals(self, match: Match) -> str:
        """``이는``, ``삼은``."""
        closed = (ord(match[1]) - 0xAC00) % 28 > 0
        return f"{match[1]}{'은' if closed else '는'} "

    def apart(self, left: str, right: str) -> bool:
        """Numbers stay beside the syllables of nouns."""
        return left.isascii() and right.isascii() and super().apart(left, right)


class Hindi(Grammar):
    """Hindi: lakh and crore, years in hundreds, ordinals with their ending."""

    IRREGULAR: ClassVar[dict[str, str]] = {
        "1": "पहल",
        "2": "दूसर",
        "3": "तीसर",
        "4": "चौथ",
        "6": "छठ",
    }

    def year(self, digits: str) -> str:
        """``उन्नीस सौ चौरासी``."""
        if len(digits) == 4 and "1100" <= digits < "2000":
            rest = cardinal(digits[2:], "hi") if digits[2:] != "00" else ""
            return self.join(cardinal(digits[:2], "hi"), "सौ", rest)
        return cardinal(digits, "hi")

    def clock_patterns(self) -> Iterator[Pattern]:
        """``9:30 बजे``."""
        clock = r"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?![\d:])( बजे)?"
        yield Pattern(re.compile(clock), self.clock, ":")

    def clock(self, match: Match) -> str:
        """``नौ बजकर तीस मिनट``."""
        hour, minute = HINDI[int(match[1])], int(match[2])
        if not minute:
            return f"{hour} बजे"
        return f"{hour} बजकर {HINDI[minute]} मिनट"

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """``1ला``, ``5वां``, ``21वीं``; years."""
        expression = rf"{BEFORE}(\d{{1,3}})(ल|र|थ|ठ|व)(ां|ा|ीं|ी|ें|े)(?!\w)"
        yield Pattern(re.compile(expression), self.ordinal_with_ending, "0")
        years = r"(?<![\w.,₹$:/-])(1[1-9]\d\d)(?![\w%]|[,.:/]\d| ?[-+*=/x] ?\d)"
        yield Pattern(re.compile(years), lambda m: self.year(m[1]), "0")

    def ordinal_with_ending(self, match: Match) -> str:
        """The stem of the number and the written ending."""
        stem = self.IRREGULAR.get(match[1])
        if stem and match[2] != "व":
            return stem + match[3].rstrip("ं")
        return f"{cardinal(match[1], 'hi')}व{match[3].rstrip('ं')}ं"

    def fraction_words(self, above: str, below: str) -> str:
        """``तीन चौथाई``."""
        if below == "4":
            return f"{cardinal(above, 'hi')} चौथाई"
        return super().fraction_words(above, below)
