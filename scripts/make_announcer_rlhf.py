"""Make ``examples/texts/announcer_rlhf.txt``: what the demo's policy says while GRPO trains it.

    python scripts/make_announcer_rlhf.py

240 strings of 3 to 7 spoken digits and 48 short announcements of recorded words, drawn with a
fixed seed. Refuses to write when a text is in the evaluation suite or was recorded, or when a word
of it was not.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

from tts_assets.hearing.text_match import normalize_for_match

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples" / "corpora" / "asterisk_en" / "samples.jsonl"
SUITE = ROOT / "examples" / "suites" / "announcer.jsonl"
TEXTS = ROOT / "examples" / "texts" / "announcer_rlhf.txt"

SEED = 20_261_122
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = range(3, 8)
STRINGS_A_LENGTH = 48
ANNOUNCEMENTS = 48
ACTIONS = (
    "listen to your message",
    "leave the conference",
    "call this number",
    "repeat the greeting",
    "save this message",
    "enter your password",
)
STATES = ("locked", "full", "available", "busy")
THINGS = ("conference", "extension", "mailbox", "directory", "number", "agent")


def main() -> None:
    suite = [json.loads(line)["text"] for line in SUITE.read_text().splitlines()]
    recorded = [json.loads(line)["transcript"] for line in CORPUS.read_text().splitlines()]
    taken = {normalize_for_match(text) for text in (*suite, *recorded)}
    words = {word for text in recorded for word in normalize_for_match(text).split()}
    texts = [*digit_strings(taken), *announcements(taken)]
    for text in texts:
        new = [word for word in normalize_for_match(text).split() if word not in words]
        if new:
            raise SystemExit(f"{text!r} has words that were not recorded: {new}")
    TEXTS.parent.mkdir(parents=True, exist_ok=True)
    TEXTS.write_text("# Made by scripts/make_announcer_rlhf.py\n" + "\n".join(texts) + "\n")
    print(f"{TEXTS.relative_to(ROOT)}: {len(texts)} texts")


def digit_strings(taken: set[str]) -> list[str]:
    """Different strings, in the order of their lengths."""
    draw = random.Random(SEED)
    strings: dict[str, None] = {}
    for length in LENGTHS:
        wanted = len(strings) + STRINGS_A_LENGTH
        while len(strings) < wanted:
            string = " ".join(draw.choices(DIGITS, k=length))
            if normalize_for_match(string) not in taken:
                strings[string] = None
    return list(strings)


def announcements(taken: set[str]) -> list[str]:
    """Random ones of all that the patterns make."""
    every = [f"Press {digit} to {action}." for digit, action in product(DIGITS, ACTIONS)]
    every += [f"The {thing} is {state}." for thing, state in product(THINGS, STATES)]
    every += [f"Please enter the {thing} number." for thing in THINGS if thing != "number"]
    free = [text for text in every if normalize_for_match(text) not in taken]
    return random.Random(SEED).sample(free, ANNOUNCEMENTS)


if __name__ == "__main__":
    main()
