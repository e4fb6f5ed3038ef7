"""The policy for characters, in every language: one form of each, and nothing that is not spoken.

- Unicode: NFC; digits of all scripts and full-width letters become ASCII.
- Quotes become ``"`` and ``'``, dashes ``-``, the ellipsis three points.
- Invisible characters (control, zero-width, right-to-left marks, soft hyphens) and emoji are
  removed.
- Markdown and HTML are removed, their text stays; a heading or an item of a list ends with a full
  stop.
- Case: a text all in capitals becomes lower case; a word of six or more capitals gets one. Shorter
  ones are acronyms and stay.
- Tags such as ``<laugh>`` stay. ``<|…|>`` stays, so that it is rejected (``front_end.unread``).
"""

from __future__ import annotations

import html
import re
import unicodedata

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
    if not text.isprintable():
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
        text = _between_tags(
            text, lambda part: LOW_LINE.sub(" ", part) if "@" not in part else part
        )
    return text


def _sentence(match: re.Match[str]) -> str:
    """The text of a heading or an item, with a full stop if a line follows."""
    line, follows = match[1].rstrip(), match.end() < len(match.string)
    return f"{line}." if follows and line[-1:].isalnum() else line


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
