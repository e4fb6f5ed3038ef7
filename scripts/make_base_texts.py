"""Make the texts of the synthetic corpora: ``base_en.txt`` and ``codec_en.txt`` in examples/texts.

    python scripts/make_base_texts.py WORDNET

``WORDNET`` is the folder of WordNet 3.0's ``data.noun`` and so on; Debian's ``wordnet-base``
installs it as ``/usr/share/wordnet``. The example sentences of WordNet cover the words of English.
Templates add what they lack: numbers, dates, times, money, letters, names, questions and
announcements. The draw has a fixed seed. A text that resembles one of ``examples/suites`` is left
out: the suites stay unseen. The base model reads the first file. The codec learns other voices from
the second; the texts of GRPO are drawn from it, so the base has not read them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from num2words import num2words

from tts_assets.audio_models.wer import normalize_for_match

ROOT = Path(__file__).resolve().parent.parent
SUITES = ROOT / "examples" / "suites"
TEXTS = ROOT / "examples" / "texts"

SEED = 20_261_129
SENTENCES = 13_000  # of WordNet
TEMPLATED = 4_500
FOR_THE_BASE = 9_999
RESEMBLES = 0.75  # share of common words, of all words of both texts
WORDS = range(3, 15)  # 1 to 8 seconds
READABLE = re.compile(r"[A-Za-z][A-Za-z ,'!?;:-]*[A-Za-z!?]")
# Examples that a demonstration should not say.
UNFIT = re.compile(
    r"\b(sex|rap(e|ist)|pedophile|nigg|whore|slut|fuck|shit|bitch|bastard|murder|kill|suicide|nazi|"
    r"hitler|cocaine|heroin|genital|penis|vagina|breast|naked|jew|negro|queer|gay|lesbian|incest|"
    r"masturbat|orgasm|faggot|retard|rectal|anal|anus|ass|crap|damn|corpse|terroris|slaves?)\w*",
    re.IGNORECASE,
)


def words(listed: str, separator: str | None = None) -> list[str]:
    """The parts of a list in one string."""
    return listed.split(separator)


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MONTHS = words(
    "January February March April May June July August September October November December"
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NAMES = words(
    "Anna Ben Carla David Emma Frank Grace Henry Iris Jack Kate Liam Maria Noah Olivia Peter Quinn "
    "Rosa Samuel Tina Ursula Victor Wendy Xavier Yvonne Zoe Thomas Laura Michael Sarah George Helen"
)
SURNAMES = words(
    "Adams Baker Cooper Davies Evans Fisher Green Hughes Irving Jones Keller Lewis Mason Newton "
    "Owens Parker Quincy Roberts Shaw Turner Underwood Vaughan Walker Young"
)
CITIES = words(
    "London Paris Berlin Madrid Rome Vienna Chicago Boston Denver Seattle Toronto Sydney Oslo "
    "Dublin Lisbon Prague Warsaw Budapest Athens Cairo Tokyo Delhi Houston Phoenix"
)
THINGS = words(
    "bread milk apples coffee chairs tickets books letters boxes shoes lamps bottles eggs flowers "
    "keys plates cups pencils windows doors shirts bicycles cameras blankets"
)
PLACES = words(
    "the station,the library,the market,the harbour,the school,the hospital,the museum,the office,"
    "the bakery,the airport,the kitchen,the garden,the bridge,the post office,the park,the theatre",
    ",",
)
DEEDS = words(
    "call me back,open the door,find the way,wait for us,carry the bags,read the letter,close the "
    "window,pay the bill,send the parcel,meet us there,bring some water,check the list,turn on the "
    "light,write it down,leave a message,take the next train",
    ",",
)
SERVICES = words(
    "sales,the operator,the directory,technical support,your messages,the conference,"
    "the front desk,billing,opening hours,the main menu,a new password,more options",
    ",",
)
ASKED = words("number password code name extension date message order account room")
LETTERS = words("A B C D E F G H I J K L M N O P Q R S T U V W X Y Z")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("wordnet", type=Path, help="folder with data.noun, data.verb, …")
    folder = parser.parse_args().wordnet
    draw = random.Random(SEED)
    unseen = Unseen(suite_texts())
    sentences = unseen.only(examples(folder))
    draw.shuffle(sentences)
    templated = unseen.only(from_templates(draw))
    texts = sentences[:SENTENCES] + templated
    draw.shuffle(texts)
    files = {"base_en.txt": texts[:FOR_THE_BASE], "codec_en.txt": texts[FOR_THE_BASE:]}
    for name, part in files.items():
        made = "# Made by scripts/make_base_texts.py\n" + "\n".join(part) + "\n"
        (TEXTS / name).write_text(made)
        print(f"{name}: {len(part)} texts")


def suite_texts() -> list[str]:
    """The texts of all example suites."""
    lines = [line for path in sorted(SUITES.glob("*.jsonl")) for line in path.open()]
    return [json.loads(line)["text"] for line in lines]


class Unseen:
    """Leaves out repeated texts and those that resemble a text of a suite."""

    def __init__(self, suite: Iterable[str]) -> None:
        self._suite = [frozenset(normalize_for_match(text).split()) for text in suite]
        self._with_word: dict[str, set[int]] = {}
        for index, words in enumerate(self._suite):
            for word in words:
                self._with_word.setdefault(word, set()).add(index)
        self._taken: set[str] = set()

    def only(self, texts: Iterable[str]) -> list[str]:
        """The texts that are unseen, each once."""
        return [text for text in texts if self._is_new(text)]

    def _is_new(self, text: str) -> bool:
        plain = normalize_for_match(text)
        words = frozenset(plain.split())
        near = {index for word in words for index in self._with_word.get(word, ())}
        alike = any(
            len(words & self._suite[i]) >= RESEMBLES * len(words | self._suite[i]) for i in near
        )
        if alike or plain in self._taken:
            return False
        self._taken.add(plain)
        return True


def examples(folder: Path) -> Iterator[str]:
    """The example sentences of WordNet, with a capital letter and a full stop."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("  "):  # the licence
                continue
            for quoted in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                text = quoted.strip()
                if (
                    READABLE.fullmatch(text)
                    and len(text.split()) in WORDS
                    and not UNFIT.search(text)
                ):
                    yield text[0].upper() + text[1:] + ("" if text[-1] in "!?" else ".")


def from_templates(draw: random.Random) -> Iterator[str]:
    """TEMPLATED texts, as many of each template."""
    for _ in range(TEMPLATED // len(TEMPLATES)):
        for template in TEMPLATES:
            yield template(draw)


def number(draw: random.Random, top: int = 1000) -> str:
    """A number in words; small ones are as frequent as large ones."""
    largest = draw.choice([10, 20, 100, top])
    return str(num2words(draw.randrange(largest)))


def year(draw: random.Random) -> str:
    """A year in words."""
    return str(num2words(draw.randrange(1700, 2040), to="year"))


def day_of_month(draw: random.Random) -> str:
    """An ordinal in words, first to thirty-first."""
    return str(num2words(draw.randrange(1, 32), to="ordinal"))


def clock(draw: random.Random) -> str:
    """A time of day in words."""
    hour = num2words(draw.randrange(1, 13))
    minute = draw.choice(
        ["", "fifteen", "thirty", "forty-five", "oh five", num2words(draw.randrange(10, 60))]
    )
    return " ".join(filter(None, (hour, minute, draw.choice(["", "a m", "p m"]))))


def digits(draw: random.Random) -> str:
    """A string of 1 to 8 digits."""
    return " ".join(draw.choices(DIGITS, k=draw.randrange(1, 9)))


def key(draw: random.Random) -> str:
    """A key of a telephone."""
    return draw.choice(("pound", "star", number(draw, 10)))


def letters(draw: random.Random) -> str:
    """A string of 1 to 6 spelled letters."""
    return " ".join(draw.choices(LETTERS, k=draw.randrange(1, 7)))


Template = Callable[[random.Random], str]
TEMPLATES: tuple[Template, ...] = (
    digits,
    digits,
    lambda d: f"{digits(d).capitalize()}.",
    lambda d: f"{number(d, 100_000).capitalize()}.",
    lambda d: f"{letters(d)}.",
    lambda d: f"The {d.choice(ASKED)} is {digits(d)}.",
    lambda d: f"Please enter your {d.choice(ASKED)}, then press {key(d)}.",
    lambda d: f"For {d.choice(SERVICES)}, press {d.choice(DIGITS)}.",
    lambda d: (
        f"Press {d.choice(DIGITS)} for {d.choice(SERVICES)}, "
        f"or {d.choice(DIGITS)} for {d.choice(SERVICES)}."
    ),
    lambda d: f"You have {number(d, 10)} new messages and {number(d, 10)} old messages.",
    lambda d: f"It is {clock(d)}.",
    lambda d: f"The train to {d.choice(CITIES)} leaves at {clock(d)}.",
    lambda d: f"We will meet at {clock(d)} in front of {d.choice(PLACES)}.",
    lambda d: f"{d.choice(DAYS)}, {d.choice(MONTHS)} {day_of_month(d)}.",
    lambda d: f"The {day_of_month(d)} of {d.choice(MONTHS)}, {year(d)}.",
    lambda d: (
        f"{d.choice(NAMES)} {d.choice(SURNAMES)} was born in {year(d)} in {d.choice(CITIES)}."
    ),
    lambda d: f"It costs {number(d)} dollars and {number(d, 100)} cents.",
    lambda d: f"We bought {number(d)} {d.choice(THINGS)} for {number(d)} euros.",
    lambda d: (
        f"{number(d).capitalize()} percent of the {d.choice(THINGS)} are in {d.choice(PLACES)}."
    ),
    lambda d: f"My name is {d.choice(NAMES)}, {letters(d)}.",
    lambda d: f"Could you {d.choice(DEEDS)}, {d.choice(NAMES)}?",
    lambda d: f"When did {d.choice(NAMES)} {d.choice(DEEDS)}?",
    lambda d: f"Is there a {d.choice(ASKED)} for {d.choice(PLACES)}?",
    lambda d: f"How many {d.choice(THINGS)} did {d.choice(NAMES)} bring to {d.choice(PLACES)}?",
    lambda d: f"Where can I buy {d.choice(THINGS)} near {d.choice(PLACES)}?",
    lambda d: f"Please {d.choice(DEEDS)} before {clock(d)}.",
    lambda d: (
        f"{d.choice(NAMES)} and {d.choice(NAMES)} walked "
        f"from {d.choice(PLACES)} to {d.choice(PLACES)}."
    ),
    lambda d: f"Mister {d.choice(SURNAMES)} will be back on {d.choice(DAYS)}.",
    lambda d: f"Room {number(d)} is on the {day_of_month(d)} floor.",
    lambda d: f"The temperature is {number(d, 100)} degrees in {d.choice(CITIES)}.",
)


if __name__ == "__main__":
    main()
