"""The grammars of Hungarian, Polish and Russian."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tts_assets.normalization.grammar import Grammar
from tts_assets.normalization.numbers import cardinal
from tts_assets.normalization.numbers import ordinal as say_ordinal
from tts_assets.normalization.rules import (
    BEFORE,
    Match,
    Noun,
    Number,
    Pattern,
    either,
    roman_value,
)

BACK_VOWELS = "aáoóuú"


class Hungarian(Grammar):
    """Hungarian: suffixes after figures, days in the possessive, decimals with their place."""

    def say(self, number: Number, gender: str = "") -> str:
        """Decimals are tenths, hundredths, thousandths."""
        if not number.decimals or len(number.decimals) > 3:
            return super().say(number, gender)
        place = ("tized", "század", "ezred")[len(number.decimals) - 1]
        whole, part = (cardinal(digits, "hu", "m") for digits in (number.whole, number.decimals))
        minus = self.phrase("minus") if number.minus else ""
        return self.join(minus, whole, "egész", part, place)

    def year(self, digits: str) -> str:
        """Years above 2000 have a hyphen: ``kétezer-huszonöt``."""
        return cardinal(digits, "hu")

    def date_patterns(self) -> Iterator[Pattern]:
        """``2020. május 3.``, ``május 3-án``, ``2024.03.15.``."""
        figures = r"(?<![\d.])(\d{4})\. ?(\d{1,2})\. ?(\d{1,2})\.(?!\d)"
        yield Pattern(re.compile(figures), self.figures, "0")
        months = either(self.months)
        suffix = r"(?:-([a-záéíóöőúüű]{1,4})\b|\.)?"
        named = rf"(?<![\w.])(?:(\d{{4}})\. )?({months}) (\d{{1,2}})(?!\d|[.,]\d){suffix}"
        yield Pattern(re.compile(named, re.IGNORECASE), self.named, "0")
        yield from super().date_patterns()

    def figures(self, match: Match) -> str | None:
        """A date in figures, with a dot after each part."""
        month, day = int(match[2]), match[3].lstrip("0")
        if not 1 <= month <= 12 or not day or int(day) > 31:
            return None
        return f"{self.year(match[1])} {self.rules.months[month - 1]} {self.day(day)}"

    def named(self, match: Match) -> str:
        """``május harmadikán``."""
        year = f"{self.year(match[1])} " if match[1] else ""
        return f"{year}{match[2]} {self.day(match[3].lstrip('0') or '0', match[4] or '')}"

    def day(self, day: str, suffix: str = "") -> str:
        """A day of a month: ``harmadika``, and ``harmadikán`` with its suffix."""
        if day == "1":
            return {"": "elseje"}.get(
                suffix, "elsején" if suffix in ("jén", "én") else f"elseje{suffix}"
            )
        stem = say_ordinal(day, "hu")
        back = vowel_is_back(stem)
        if suffix in ("án", "én"):
            return stem + ("án" if back else "én")
        return stem + ("a" if back else "e") + suffix.removeprefix("a").removeprefix("e")

    def date(self, day: str, month: int, year: str) -> str:
        """The order is year, month, day."""
        return f"{self.year(year)} {self.rules.months[month - 1]} {self.day(day)}"

    def clock(self, match: Match) -> str | None:
        """``kilenc óra harminc``."""
        hour, minute = cardinal(str(int(match[1])), "hu", "m"), int(match[2])
        return self.join(hour, "óra", cardinal(str(minute), "hu") if minute else "")

    def roman_patterns(self) -> Iterator[Pattern]:
        """A number with a dot is an ordinal: ``XIV. Lajos``."""
        expression = re.compile(r"(?<![\w.])([IVX]{1,5})\.(?= [a-záéíóöőúüűA-ZÁÉÍÓÖŐÚÜŰ])")
        yield Pattern(expression, lambda m: self.ordinal(str(roman_value(m[1]))), "IVX")
        yield from super().roman_patterns()

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """``2. emelet``, ``1984-ben``, ``5%-kal``, ``2 alma``."""
        ordered = rf"{BEFORE}(\d{{1,3}})\.(?= [a-záéíóöőúüű])"
        yield Pattern(re.compile(ordered), lambda m: self.ordinal(m[1]), "0")
        suffixed = rf"{BEFORE}(\d{{1,9}})-([a-záéíóöőúüű]{{1,6}})\b"
        yield Pattern(re.compile(suffixed), lambda m: with_suffix(cardinal(m[1], "hu"), m[2]), "-")
        counted = rf"{BEFORE}(\d{{0,3}}2)(?= [a-záéíóöőúüű])"
        yield Pattern(re.compile(counted), lambda m: cardinal(m[1], "hu", "m"), "2")

    def sign_patterns(self) -> Iterator[Pattern]:
        """A suffix joins the word of the sign before it: ``százalékkal``."""
        yield Pattern(re.compile(r"(?<=százalék)-(?=[a-záéíóöőúüű])"), lambda m: "", "-")
        yield from super().sign_patterns()

    def fraction_words(self, above: str, below: str) -> str:
        """``két ötöd``."""
        part = self.rules.fractions.get(f"1/{below}", "").rpartition(" ")[2]
        if not part:
            return super().fraction_words(above, below)
        return f"{cardinal(above, 'hu', 'm')} {part}"


def with_suffix(word: str, suffix: str) -> str:
    """A Hungarian number with a suffix: ``kettes``, ``hármat``, ``néggyel``, ``ötödik``."""
    if word.endswith("négy") and suffix.startswith("gy"):
        return word[:-2] + "g" + suffix
    if word.endswith("egy") and suffix.startswith("gy"):
        return word[:-2] + "g" + suffix
    if re.match(r"[eao]s|ös|[ea]t|[ea]n$", suffix):
        shorter = {"kettő": "kett", "három": "hárm", "hét": "het", "ezer": "ezr"}
        for stem, short in shorter.items():
            if word.endswith(stem) and (stem != "ezer" or suffix[1] == "s"):
                return word.removesuffix(stem) + short + suffix
    return word + suffix


def vowel_is_back(word: str) -> bool:
    """Whether the last vowel of a Hungarian word that is not neutral is a back one."""
    vowels = [letter for letter in word if letter in BACK_VOWELS + "eéöőüű"]
    return bool(vowels) and vowels[-1] in BACK_VOWELS


class Slavic(Grammar):
    """What Polish and Russian share: three forms of nouns, ordinals with case."""

    year_word: str  # genitive
    locative_years: str  # a pattern of words before a year in the locative
    year_abbreviations: str  # a pattern
    year_forms: dict[str, str]  # of the word for year: by case

    def date_patterns(self) -> Iterator[Pattern]:
        """``3 maja 2020 r.``, ``w 1984 roku``, ``11.11.1918``."""
        yield from super().date_patterns()
        year = rf"(?: (\d{{4}})(?: ?({self.year_abbreviations}))?)?"
        months = either(name.lower() for name in self.rules.months)
        named = rf"{BEFORE}(\d{{1,2}}) ({months})(?!\w){year}"
        yield Pattern(re.compile(named, re.IGNORECASE), self.named_date, "0")
        before = rf"(?<![\w.,])(?:({self.locative_years}) )?"
        alone = rf"{before}(\d{{4}})-?(?:м|го|й)? ?({self.year_abbreviations})"
        yield Pattern(re.compile(alone), self.year_with_word, "0")

    def named_date(self, match: Match) -> str | None:
        """The day and the year are ordinals in the genitive."""
        day, month, year = match.groups()[:3]
        words = f"{self.ordinal(day, 'g')} {month}"
        if not year:
            return words
        return f"{words} {self.ordinal(year, 'g')} {self.year_word}"

    def year_with_word(self, match: Match) -> str | None:
        """An ordinal that agrees with the word for year."""
        preposition, digits, word = match.groups()
        case = self.year_case(preposition, word)
        head = f"{preposition} " if preposition else ""
        return f"{head}{self.ordinal(digits, case)} {self.year_forms[case]}"

    def year_case(self, preposition: str | None, word: str) -> str:
        """The case of a year: l, g, or n."""
        raise NotImplementedError

    def date(self, day: str, month: int, year: str) -> str:
        """The year is an ordinal in the genitive."""
        year = f"20{year}" if len(year) == 2 else year
        months = self.rules.months[month - 1]
        return f"{self.ordinal(day, 'date')} {months} {self.ordinal(year, 'g')} {self.year_word}"


class Polish(Slavic):
    """Polish."""

    more_words = (r"\bw\.",)

    year_word = "roku"
    locative_years = "w|we|od|do|po|z|ze|około"
    year_abbreviations = r"r\.|roku\b|rok\b"
    year_forms = {"l": "roku", "g": "roku", "n": "rok"}  # noqa: RUF012

    def first_patterns(self) -> Iterator[Pattern]:
        """``w XX w.``, ``lata 90.``, ``2 godz.``."""
        century = re.compile(r"(?:\b([wW]) |(^|\W))([IVXL]{1,5}) w\.")
        yield Pattern(century, self.short_century, "w")
        decade = re.compile(r"\b([Ll]at(?:a|ach)?) ([2-9]0)\.(?: (i|oraz|lub) ([2-9]0)\.)?")
        yield Pattern(decade, self.decade, "0")
        hour = re.compile(r"\b(o|O|do|Do|od|Od|po|Po) godz\. (\d{1,2})(?![\d:.,]\d|\d)")
        yield Pattern(hour, self.hour, "0")
        hours = re.compile(rf"{BEFORE}({self.number}) ?godz\.")
        noun = self.units["godz."]
        yield Pattern(hours, lambda m: self.count(self.parse(m[1]), noun), "0")

    def short_century(self, match: Match) -> str:
        """The locative after "w", the nominative at the start, the genitive elsewhere."""
        form = "l" if match[1] else "g" if match.start() else ""
        head = f"{match[1]} " if match[1] else match[2]
        noun = "wieku" if form else "wiek"
        return f"{head}{self.ordinal(str(roman_value(match[3])), form)} {noun}"

    def decade(self, match: Match) -> str:
        """``w latach dziewięćdziesiątych``."""
        form = "pl_f" if match[1][-1] == "a" else "gp"
        second = declined(self.ordinal(match[4]), form) if match[4] else ""
        return self.join(match[1], declined(self.ordinal(match[2]), form), match[3] or "", second)

    def hour(self, match: Match) -> str | None:
        """``o godzinie siedemnastej``."""
        if int(match[2]) > 24:
            return None
        noun = "godzinie" if match[1].lower() == "o" else "godziny"
        return f"{match[1]} {noun} {declined_feminine(self.ordinal(str(int(match[2]))), True)}"

    def plural(self, number: int) -> int:
        """2, 3, 4, but not 12, 13, 14, take the second form."""
        if number == 1:
            return 0
        return 1 if number % 10 in (2, 3, 4) and number % 100 // 10 != 1 else 2

    def year_case(self, preposition: str | None, word: str) -> str:
        """Locative after "w", genitive after other prepositions."""
        if preposition in ("w", "we", "po"):
            return "l"
        return "n" if word == "rok" else "g"

    def ordinal(self, digits: str, form: str = "") -> str:
        """An ordinal in the nominative, genitive (g), locative (l) or feminine (f)."""
        words = say_ordinal(digits, "pl").split()
        if form not in ("g", "l", "f"):
            return " ".join(words)
        changed = 2 if len(words) > 1 and int(digits) % 100 > 20 and int(digits) % 10 else 1
        return " ".join([*words[:-changed], *(declined(word, form) for word in words[-changed:])])

    def century(self, match: Match) -> str | None:
        """``XX wieku`` in the form that follows."""
        following = match.string[match.end() :].lstrip(". ")
        before = match.string[: match.start()]
        if following.startswith("wieku"):
            form = "l" if re.search(r"\b[wW] $", before) else "g"
            return self.ordinal(str(roman_value(match[1])), form)
        return self.ordinal(str(roman_value(match[1])))

    def clock(self, match: Match) -> str | None:
        """``o dziewiątej trzydzieści``."""
        oblique = re.search(r"\b(?:o|od|do|po|przed) $", match.string[: match.start()])
        hour = declined_feminine(self.ordinal(str(int(match[1]))), bool(oblique))
        minute = int(match[2])
        if not minute:
            return hour
        return f"{hour} {'zero ' if minute < 10 else ''}{cardinal(str(minute), 'pl')}"

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """Feminine nouns: ``2 osoby``."""
        nouns = self.phrase("feminine_nouns")
        counted = rf"{BEFORE}(\d{{0,3}}[12])(?= (?:{nouns})\b)"
        yield Pattern(re.compile(counted), lambda m: cardinal(m[1], "pl", "f"), "0")

    def fraction_words(self, above: str, below: str) -> str:
        """``trzy czwarte``."""
        if not 1 < int(below) <= 100:
            return super().fraction_words(above, below)
        stem = self.ordinal(below)
        many = 2 <= int(above) % 10 <= 4 and int(above) // 10 != 1
        words = [
            declined(word, "pl_f" if many else "f1" if above == "1" else "gp")
            for word in stem.split()
        ]
        return f"{cardinal(above, 'pl', 'f')} {' '.join(words)}"


POLISH_ENDINGS = {
    "g": ("ego", "iego"),
    "l": ("ym", "im"),
    "f": ("ej", "iej"),
    "f1": ("a", "ia"),
    "pl_f": ("e", "ie"),
    "gp": ("ych", "ich"),
}


def declined(word: str, form: str) -> str:
    """A Polish ordinal in another form: ``piąty`` to ``piątego``; ``trzeci`` to ``trzeciego``."""
    hard, soft = POLISH_ENDINGS[form]
    if word.endswith("y"):
        stem = word.removesuffix("y")
        return stem + (soft if stem.endswith(("k", "g")) and hard[0] == "e" else hard)
    if word.endswith("i"):
        stem = word.removesuffix("i")
        return stem + (soft if not stem.endswith(("k", "g")) or hard[0] in "e" else hard)
    return word


def declined_feminine(words: str, oblique: bool) -> str:
    """A Polish ordinal of an hour: ``dziewiąta``, ``dziewiątej``."""
    return " ".join(declined(word, "f" if oblique else "f1") for word in words.split())


class Russian(Slavic):
    """Russian."""

    more_words = (r"\bв\.", r"\bим\.")

    year_word = "года"
    locative_years = "в|с|до|от|к|около|после"
    year_abbreviations = r"г\.|году\b|года\b|год\b"
    year_forms = {"l": "году", "g": "года", "n": "год"}  # noqa: RUF012
    CASES = {"l": "p", "g": "g", "n": "n"}  # noqa: RUF012

    def first_patterns(self) -> Iterator[Pattern]:
        """``в XX в.``."""
        century = re.compile(r"(?:\b([вВ]) |(^|\W))([IVXL]{1,5}) в\.")
        yield Pattern(century, self.short_century, "в")
        # before a name in the genitive; "им" is also a pronoun at the end of a sentence
        named = (
            r"(?<=[а-яА-Я] )им\.(?= (?:[А-Я]\. ?){0,2}[А-Я][а-я]{2,}(?:[иы]на|[оеё]ва|[ео]го|ой)\b)"
        )
        yield Pattern(re.compile(named), lambda _: "имени", "и")

    def short_century(self, match: Match) -> str:
        """The prepositional after "в", the nominative at the start, the genitive elsewhere."""
        form = "l" if match[1] else "g" if match.start() else "n"
        head = f"{match[1]} " if match[1] else match[2]
        noun = {"l": "веке", "g": "века", "n": "век"}[form]
        return f"{head}{self.ordinal(str(roman_value(match[3])), form)} {noun}"

    def plural(self, number: int) -> int:
        """1, 21, 31; 2, 3, 4; the others."""
        if number % 100 // 10 == 1:
            return 2
        return {1: 0, 2: 1, 3: 1, 4: 1}.get(number % 10, 2)

    def form(self, number: Number, noun: Noun) -> str:
        """After decimals the genitive singular, which is the second form."""
        if number.decimals:
            return noun.forms[min(1, len(noun.forms) - 1)]
        return super().form(number, noun)

    def decimal(self, whole: str, decimals: str) -> str:
        """``три целых пять десятых``."""
        if len(decimals) > 3:
            return super().decimal(whole, decimals)
        one = ["десят", "сот", "тысячн"][len(decimals) - 1]
        part = decimals.lstrip("0") or "0"
        single = part.endswith("1") and not part.endswith("11")
        head = cardinal(whole, "ru", "f")
        unit = "целая" if head.endswith("одна") else "целых"
        return f"{head} {unit} {cardinal(part, 'ru', 'f')} {one}{'ая' if single else 'ых'}"

    def year_case(self, preposition: str | None, word: str) -> str:
        """By the word for year; the abbreviation is locative after "в"."""
        if word == "г.":
            return "l" if preposition == "в" else "g" if preposition else "n"
        return {"году": "l", "года": "g"}.get(word, "n")

    def ordinal(self, digits: str, form: str = "") -> str:
        """An ordinal by case (g, l), gender (f, n), or as the day of a date."""
        if form in ("f", "neuter", "date"):
            return say_ordinal(digits, "ru", gender=form if form == "f" else "n")
        if form == "pl":  # genitive and prepositional
            return re.sub(r"(?:ый|ой)$", "ых", re.sub(r"ий$", "ьих", say_ordinal(digits, "ru")))
        if form in self.CASES:
            return say_ordinal(digits, "ru", case=self.CASES[form])
        return say_ordinal(digits, "ru")

    def century(self, match: Match) -> str | None:
        """``XX век``, ``в XX веке``."""
        following = match.string[match.end() :].lstrip(". ")
        cases = {"веке": "l", "века": "g", "столетия": "g", "столетии": "l"}
        form = next((case for word, case in cases.items() if following.startswith(word)), "n")
        return self.ordinal(str(roman_value(match[1])), form)

    def reign(self, match: Match) -> str | None:
        """``Пётр первый``, ``Екатерина вторая``."""
        return self.with_roman(match)

    def chapter(self, match: Match) -> str | None:
        """``глава четвёртая``."""
        return self.with_roman(match)

    def with_roman(self, match: Match) -> str:
        """A noun and an ordinal of its gender."""
        gender = "f" if match[1][-1] in "ая" else ""
        return f"{match[1]} {self.ordinal(str(roman_value(match[2])), gender)}"

    def clock(self, match: Match) -> str | None:
        """``семнадцать ноль пять``."""
        hour, minute = cardinal(str(int(match[1])), "ru"), int(match[2])
        if not minute:
            return f"{hour} ноль-ноль"
        return f"{hour} {'ноль ' if minute < 10 else ''}{cardinal(str(minute), 'ru')}"

    def ordinal_patterns(self) -> Iterator[Pattern]:
        """``2-й``, ``5-я``, ``10-го``; feminine and neuter nouns."""
        endings = {
            "й": "",
            "я": "f",
            "е": "neuter",
            "го": "g",
            "м": "l",
            "х": "pl",
            "ый": "",
            "ая": "f",
            "ое": "neuter",
        }
        expression = rf"{BEFORE}(\d{{1,4}})-({either(endings)})(?!\w)"
        decade = re.compile(rf"{BEFORE}(\d{{1,3}}0)-е(?= (?:год|гг))")
        yield Pattern(decade, lambda m: f"{self.ordinal(m[1], 'pl')[:-1]}е", "-")
        yield Pattern(re.compile(expression), lambda m: self.ordinal(m[1], endings[m[2]]), "-")
        nouns = self.phrase("feminine_nouns")
        counted = rf"{BEFORE}(\d{{0,3}}[12])(?= (?:{nouns})(?!\w))"
        yield Pattern(re.compile(counted), lambda m: cardinal(m[1], "ru", "f"), "0")

    def fraction_words(self, above: str, below: str) -> str:
        """``три четвёртых``."""
        if not 1 < int(below) <= 100:
            return super().fraction_words(above, below)
        stem = say_ordinal(below, "ru", gender="f")
        if above != "1":
            stem = re.sub(r"ая$", "ых", re.sub(r"ья$", "ьих", stem))
        return f"{cardinal(above, 'ru', 'f')} {stem}"
