"""How a language says numbers, years, ordinals, quantities and ranges, in bounded time.

num2words has most languages; Chinese and Hindi are here. What num2words cannot say, or not in
bounded time, is said digit by digit. A language without words for digits keeps them.

A range is read before its parts, because the second part is otherwise a negative number, and the
sign between the parts is lost once they are words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, ClassVar

from num2words import CONVERTER_CLASSES, num2words

from tts_assets.normalization.rules import (
    BEFORE,
    SIGN,
    LanguageRules,
    Match,
    Noun,
    Number,
    Pattern,
    either,
)

LONGEST = 9  # digits of a cardinal; a longer run is a number to dial or to type
# Digits that num2words says in these languages: Amharic fails at 1999 and does not end at 1234567.
SHORTER = {"am": 3, "ce": 6, "tet": 6}
CHINESE = "零一二三四五六七八九"
HINDI_WORDS = (
    "शून्य एक दो तीन चार पाँच छह सात आठ नौ दस ग्यारह बारह तेरह चौदह पंद्रह सोलह सत्रह "
    "अठारह उन्नीस बीस इक्कीस बाईस तेईस चौबीस पच्चीस छब्बीस सत्ताईस अट्ठाईस उनतीस तीस "
    "इकतीस बत्तीस तैंतीस चौंतीस पैंतीस छत्तीस सैंतीस अड़तीस उनतालीस चालीस इकतालीस "
    "बयालीस तैंतालीस चवालीस पैंतालीस छियालीस सैंतालीस अड़तालीस उनचास पचास इक्यावन "
    "बावन तिरपन चौवन पचपन छप्पन सत्तावन अट्ठावन उनसठ साठ इकसठ बासठ तिरसठ चौंसठ पैंसठ "
    "छियासठ सड़सठ अड़सठ उनहत्तर सत्तर इकहत्तर बहत्तर तिहत्तर चौहत्तर पचहत्तर छिहत्तर "
    "सतहत्तर अठहत्तर उन्यासी अस्सी इक्यासी बयासी तिरासी चौरासी पचासी छियासी सत्तासी "
    "अट्ठासी नवासी नब्बे इक्यानवे बानवे तिरानवे चौरानवे पचानवे छियानवे सत्तानवे "
    "अट्ठानवे निन्यानवे"
)
HINDI = HINDI_WORDS.split()  # 0 to 99
# Forms of a number before a noun that is not masculine, by the last word of the number.
FEMININE: dict[str, dict[str, str]] = {
    "de": {"eins": "eine"},
    "es": {"uno": "una", "veintiuno": "veintiuna"},
    "fr": {"un": "une"},
    "it": {"uno": "una"},
    "pt": {"um": "uma", "dois": "duas"},
    "pl": {"dwa": "dwie", "jeden": "jedna"},
    "ru": {"один": "одна", "два": "две"},
}
MASCULINE: dict[str, dict[str, str]] = {
    "de": {"eins": "ein"},
    "es": {"uno": "un", "veintiuno": "veintiún"},
    "it": {"uno": "un"},
    "hu": {"kettő": "két"},
}
HUNDREDS = {"es": re.compile(r"(ient)os\b"), "pt": re.compile(r"((?<=z|c|h)ent)os\b")}


def known(language: str) -> bool:
    """Whether numbers can be said in ``language``."""
    return language in CONVERTER_CLASSES or language in ("zh", "hi")


@lru_cache(maxsize=100_000)
def cardinal(digits: str, language: str, gender: str = "") -> str:
    """The number of a string of ASCII digits in words; digit by digit if it is long.

    ``gender``: ``m``, ``f`` or ``n`` before a noun of that gender, empty for the number alone.
    """
    digits = digits.lstrip("0") or "0"
    if len(digits) > SHORTER.get(language, LONGEST):
        return spell(digits, language)
    words = _say(int(digits), language, gender)
    if words is None:
        return spell(digits, language) if len(digits) > 1 else digits
    return _agree(words, language, gender)


def spell(digits: str, language: str) -> str:
    """Digits one by one, separated by spaces."""
    words = [digit_name(digit, language) for digit in digits]
    return ("" if language in ("zh", "ja", "ko") else " ").join(words)


@cache
def digit_name(digit: str, language: str) -> str:
    """The word of one ASCII digit; the digit itself in a language without words for it."""
    return _say(int(digit), language) or digit


@lru_cache(maxsize=20_000)
def ordinal(digits: str, language: str, **form: str) -> str:
    """The ordinal of a number; the cardinal where a language has none that is known.

    ``form`` has ``gender`` and ``case`` for Russian.
    """
    if len(digits) > SHORTER.get(language, LONGEST):
        return spell(digits, language)
    if language in ("zh", "ja", "ko"):
        return cardinal(digits, language)
    words = _call(int(digits), language, to="ordinal", **form) if known(language) else None
    return words or cardinal(digits, language)


def _agree(words: str, language: str, gender: str) -> str:
    """The form of a number before a noun of ``gender``; unchanged for the number alone."""
    if not gender:
        return words
    forms = (FEMININE if gender == "f" else MASCULINE).get(language, {})
    head, space, last = words.rpartition(" ")
    if gender == "f" and language in HUNDREDS:
        words = HUNDREDS[language].sub(r"\1as", words)
        head = HUNDREDS[language].sub(r"\1as", head)
    if last in forms and not (language == "pl" and last == "jeden" and head):
        return head + space + forms[last]
    if language == "hu" and words.endswith("kettő"):
        return words.removesuffix("kettő") + "két"
    return words


def _say(number: int, language: str, gender: str = "") -> str | None:
    """A cardinal in words, or None if the language has no words for it."""
    if language == "zh":
        return chinese(number)
    if language == "hi":
        return hindi(number)
    form = {"gender": gender} if language == "ru" and gender else {}
    words = _call(number, language, **form)
    if words is None:
        return None
    words = words.replace(",", "")
    if language == "ru" and words.startswith("одна тысяча"):
        return words.removeprefix("одна ")
    if language == "it":
        return words.replace("milione e", "milione").replace("milioni e", "milioni")
    if language == "ko":
        return words.replace(" ", "")
    return words


def _call(number: int, language: str, **options: Any) -> str | None:
    """num2words, or None if it fails or leaves digits. Its converters raise errors of all kinds."""
    try:
        words = num2words(number, lang=language, **options)
    except Exception:  # noqa: BLE001
        return None
    usable = isinstance(words, str) and bool(words) and not any(map(str.isdigit, words))
    return " ".join(words.split()) if usable else None


def chinese(number: int) -> str:
    """A cardinal below 10^9 in Chinese: 12345 is 一万二千三百四十五."""
    if number >= 10_000:
        high, low = divmod(number, 10_000)
        if high >= 10_000:
            top, high = divmod(high, 10_000)
            rest = f"{'' if high >= 1000 else '零'}{chinese(high)}万" if high else ""
            tail = ("" if low >= 1000 and high else "零") + chinese(low) if low else ""
            return f"{chinese(top)}亿{rest}{tail}"
        tail = f"{'' if low >= 1000 else '零'}{chinese(low)}" if low else ""
        return f"{chinese(high)}万{tail}"
    words, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, number = divmod(number, unit)
        if digit:
            words += ("零" if gap and words else "") + CHINESE[digit] + name
        gap = not digit
    return words.removeprefix("一") if words.startswith("一十") else words or "零"


def hindi(number: int) -> str:
    """A cardinal below 10^9 in Hindi, with लाख (10^5) and करोड़ (10^7)."""
    if number < 100:
        return HINDI[number]
    for unit, name in ((10**7, "करोड़"), (10**5, "लाख"), (1000, "हज़ार"), (100, "सौ")):
        if number >= unit:
            count, rest = divmod(number, unit)
            words = f"{hindi(count)} {name}"
            return f"{words} {hindi(rest)}" if rest else words
    raise AssertionError("not reached")


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

    @property
    def sign(self) -> str:
        """A pattern of an optional minus sign; letters of East Asia may be before it."""
        return r"(?:(?<![a-zA-Z\d)])-)?" if self.unspaced else SIGN

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
