"""The text front end: written text to spoken text, in every language, in bounded time and size.

1. Characters (:func:`clean`): one form of each, in every language.

   - Unicode: NFC; digits of all scripts and full-width letters become ASCII.
   - Quotes become ``"`` and ``'``, dashes ``-``, the ellipsis three points.
   - Invisible characters (control, zero-width, right-to-left marks, soft hyphens) and emoji are
     removed.
   - Markdown and HTML are removed, their text stays; a heading or an item of a list ends with a
     full stop.
   - Case: a text all in capitals becomes lower case; a word of six or more capitals gets one.
     Shorter ones are acronyms and stay.

2. The grammar of the language (``grammar.py``) reads numbers, dates, units, abbreviations, signs.
3. A sign that nothing has read stays, and :func:`unread` reports it: such a text is rejected from
   training, and refused by the server. So is ``<|…|>``. Tags such as ``<laugh>`` stay.

The result of a result is the result itself.
"""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

from tts_assets.normalization import asian, eastern, english, western
from tts_assets.normalization.grammar import Grammar
from tts_assets.normalization.numbers import spell
from tts_assets.normalization.rules import (
    ADDRESS,
    DIGIT,
    LanguageRules,
    builtin_rules,
    languages_with_rules,
)

log = logging.getLogger(__name__)
TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "‛": "'", "′": "'", "‹": "'", "›": "'", "ʼ": "'", "`": "'"}
    | {"“": '"', "”": '"', "„": '"', "‟": '"', "″": '"', "«": '"', "»": '"', "〝": '"', "〞": '"'}
    | {"「": '"', "」": '"', "『": '"', "』": '"', "《": '"', "》": '"', "【": "(", "】": ")"}
    | {"–": "-", "‐": "-", "‑": "-", "‒": "-", "−": "-", "—": " - ", "―": " - ", "…": "..."}
    | {"〜": "~", "～": "~", "∼": "~", "⁄": "/", "∕": "/", "·": " ", "•": " ", "‣": " ", "●": " "}
    | {"℃": "°C", "℉": "°F", "㎞": "km", "㎏": "kg", "㎡": "m²", "№": "№ ", "º": "º", "˚": "°"}
    | {"™": "", "®": "", "℠": "", "†": "", "‡": "", "¶": "", "\u20e3": "", "\ufffc": ""}
    | {
        chr(code): chr(code - 0xFEE0)
        for code in range(0xFF01, 0xFF5F)
        if chr(code) not in "！，：；？～"
    }
    | {"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅛": " 1/8", "⅜": " 3/8"}
    | {"⅝": " 5/8", "⅞": " 7/8", "⅕": " 1/5", "⅖": " 2/5", "⅗": " 3/5", "⅘": " 4/5", "⅙": " 1/6"}
    | {"ﬁ": "fi", "ﬂ": "fl", "ﬀ": "ff", "ﬃ": "ffi", "ﬄ": "ffl", "µ": "μ", "Ω": "Ω"}
)
# Control characters that are no white space; formats: zero-width, direction marks, soft hyphen.
# The zero-width non-joiner and joiner stay between letters, where they are part of the spelling of
# Persian and Indian words.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
    "|(?<![^\\W\\d_])[\u200c\u200d]|[\u200c\u200d](?![^\\W\\d_])"
)
EMOJI = re.compile("[\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\u3030\u303d\U0001f000-\U0001faff]")
ASCII_DIGIT = re.compile(r"(?![0-9])\d")

FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n`]{0,80}$", re.MULTILINE)
RULE = re.compile(r"^[ \t]*(?:[-*_=|:+][ \t]*){3,}$", re.MULTILINE)
ROW = re.compile(r"^[ \t]*\|(.{0,2000})\|[ \t]*$", re.MULTILINE)
HEADING = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+(?=[^\s#\d])|(?:[-*+>][ \t]+)+(?=\S))(.*)$", re.MULTILINE
)
LINK = re.compile(r"!?\[([^\[\]\n]{0,300})\]\([^()\s]{1,1000}(?:\s[^()\n]{0,200})?\)")
EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*\n]{1,1000}?)(?<=[^\s*])\1(?![\w*])")
UNDERLINE = re.compile(r"(?<![\w<])(_{1,3})(?=[^\s_])([^_\n]{1,1000}?)(?<=[^\s_])\1(?![\w>])")
STRUCK = re.compile(r"~~(?=\S)([^~\n]{1,1000})~~")
CODE = re.compile(r"`{1,3}([^`\n]{1,1000})`{1,3}")
ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!~|<>])")
POWER = re.compile(r"(?<=\d)\*\*(?=\d)")
RUN_OF_STARS = re.compile(r"\*{2,}|(?<=[^\W\d_])\*|(?<=\w)#{2,}|#{2,}(?=\s|$)")
LONG_DASH = re.compile(r"(?<!-)-{2,3}(?!-)")
HTML = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|body|br|center|code|dd|del|div|dl|dt|em|font|h[1-6]|hr|html|i|"
    r"img|ins|li|mark|ol|p|pre|q|s|small|span|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul|"
    r"speak|break|emphasis|prosody|say-as|phoneme|voice)(?:\s[^<>]{0,500})?/?>",
    re.IGNORECASE,
)
PAUSE_MARK = re.compile(r"\[pause(?:\s[^\[\]\n]{0,20})?\]", re.IGNORECASE)
ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
TAG = re.compile(r"<[a-z]+(?:_[a-z]+)*>")
LOW_LINE = re.compile(r"_+")
WITH_LOW_LINE = re.compile(r"(?<!\S)[^\s_]{0,2000}_\S*")
MARKUP = re.compile(r"[*_`~#|>\[\\&<=+-]")

CAPITALS = re.compile(r"[^\W\d_]{6,}")
LONG_CAPITALS = re.compile(r"[A-Z\u0080-\U0001ffff]{6}")
CAPITAL_TEXT = 8  # letters of a text all in capitals that is not an acronym
LONGEST_ACRONYM = 5


def clean(text: str) -> str:
    """``text`` in the characters of the module's docstring. Lines stay; spaces are not changed."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(TYPOGRAPHY)
        text = ASCII_DIGIT.sub(lambda match: str(unicodedata.digit(match[0])), text)
        text = EMOJI.sub(" ", text)
    if not (text.isascii() and text.isprintable()):  # a variation selector is printable
        text = INVISIBLE.sub("", text)
    if MARKUP.search(text):
        text = without_markup(text)
    return fold_case(text)


def without_markup(text: str) -> str:
    """``text`` without Markdown and HTML. Stars and number signs that may be keys stay."""
    if "&" in text:
        text = ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if "<" in text or "[" in text:
        text = PAUSE_MARK.sub(" ", HTML.sub(" ", text))
        text = LINK.sub(r"\1", text)
    for pattern in (FENCE, RULE):
        text = pattern.sub("", text)
    text = ROW.sub(lambda match: match[1].replace("|", ", "), text)
    text = HEADING.sub(_sentence, text)
    for pattern, group in ((CODE, r"\1"), (STRUCK, r"\1"), (EMPHASIS, r"\2"), (UNDERLINE, r"\2")):
        text = pattern.sub(group, text)
    text = ESCAPED.sub(r"\1", text)
    text = RUN_OF_STARS.sub("", POWER.sub("^", text))
    text = LONG_DASH.sub(" - ", text)
    if "_" in text:
        text = _between_tags(text, lambda part: WITH_LOW_LINE.sub(_without_low_line, part))
    return text


def _sentence(match: re.Match[str]) -> str:
    """The text of a heading or an item, with a full stop if a line follows."""
    line, follows = match[1].rstrip(), match.end() < len(match.string)
    return f"{line}." if follows and line[-1:].isalnum() else line


def _without_low_line(match: re.Match[str]) -> str:
    """A word without low lines, unless it has a web address or a mailbox."""
    return match[0] if ADDRESS.search(match[0]) else LOW_LINE.sub(" ", match[0])


def _between_tags(text: str, change: object) -> str:
    """``text`` with ``change`` applied to what is outside of tags."""
    assert callable(change)
    parts, start = [], 0
    for tag in TAG.finditer(text):
        parts += [change(text[start : tag.start()]), tag[0]]
        start = tag.end()
    return "".join([*parts, change(text[start:])])


def fold_case(text: str) -> str:
    """Lower case for a text all in capitals; one capital for long words in capitals."""
    if text.isupper():  # no small letter
        words = [word for word in text.split() if word.upper() != word.lower()]
        letters = sum(map(str.isalpha, text))
        if letters >= CAPITAL_TEXT and len(words) > 1:
            return text.lower()
    if text.islower() or not LONG_CAPITALS.search(text):
        return text
    return CAPITALS.sub(lambda m: m[0].capitalize() if m[0].isupper() else m[0], text)


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


def warn_of_languages(tags: Iterable[str], own: Rules) -> None:
    """Log a warning for languages whose dates, units and signs have rules neither here nor in
    ``own``."""
    languages = {base_language(tag) for tag in tags}
    if others := sorted(languages - {*languages_with_rules(), *own}):
        log.warning(
            "there are no text rules for %s: numbers are read, but no dates, units, signs or "
            "abbreviations; samples with signs are rejected. Write [text] rules (docs/text.md)",
            ", ".join(others),
        )


def rules_of(language: str, own: Rules | None) -> LanguageRules:
    """The rules of a language: those of the project, extended by the user's."""
    rules = builtin_rules(language) or LanguageRules(decimal="." if language in POINT else ",")
    rules = rules.extended(own[language]) if own and language in own else rules
    return rules.model_copy(update={"words": with_capitals(rules.words)})


def with_capitals(words: dict[str, str]) -> dict[str, str]:
    """``words``, with abbreviations of more than one letter also at the start of a sentence."""
    capitals = {
        key[0].upper() + key[1:]: word[0].upper() + word[1:]
        for key, word in words.items()
        if key[:1].islower() and "." in key and sum(map(str.isalpha, key)) > 1 and word
    }
    return capitals | words


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
        before, units = rules.phrases.get("per_unit", ""), "|".join(rules.signs_of_units)
        found += [rf"(?:{before})\s+(?:{units})\b"] if units else []
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
        keys = [*rules.words, *rules.regnal, *rules.chapters, *rules.signs_of_units]
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
