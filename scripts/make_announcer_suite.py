"""Make ``examples/suites/announcer.jsonl``: what the demo's voice is asked to say.

    python scripts/make_announcer_suite.py

digits     40 strings of 3 to 7 spoken digits, eight of each length, drawn with a fixed seed
reordered  20 announcements of words that were recorded, in orders that were not
unseen     15 ordinary sentences with words the voice has never said

Refuses to write when a text was recorded, when a word of ``reordered`` was not, or when every
word of an ``unseen`` text was.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tts_assets.audio_models.wer import normalize_for_match

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples" / "corpora" / "asterisk_en" / "samples.jsonl"
SUITE = ROOT / "examples" / "suites" / "announcer.jsonl"

SEED = 20_261_121
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = range(3, 8)
STRINGS_A_LENGTH = 8

REORDERED = (
    "Please enter your mailbox number followed by the pound key.",
    "The leader has joined the conference.",
    "You are now entering the directory.",
    "Press star to send this message.",
    "Your conference has been locked.",
    "Please hold while I call the operator.",
    "Thank you for your message. Goodbye.",
    "That extension is not available.",
    "Press five to increase the volume.",
    "The number you have entered is busy.",
    "Please try your password again.",
    "I'm sorry, that conference is locked.",
    "There are four new messages in your mailbox.",
    "To leave the directory, press pound.",
    "Your name has been saved.",
    "The person at this number is on the phone.",
    "Please say the name of the conference.",
    "Press two to listen to the last message.",
    "The caller has left a message.",
    "Please wait for the next agent.",
)
UNSEEN = (
    "The train to the coast leaves at noon.",
    "My brother bought a yellow bicycle.",
    "It will rain in the mountains tonight.",
    "She opened the window and looked outside.",
    "We had fresh bread and cheese for lunch.",
    "The children are playing in the garden.",
    "A good book is better than a bad film.",
    "Turn left after the old stone bridge.",
    "The doctor will see you in a few minutes.",
    "Nobody knew where the cat had gone.",
    "His coffee was cold before he drank it.",
    "The river runs through the middle of town.",
    "Can you help me carry this heavy table?",
    "They sang until the morning came.",
    "Green apples grow behind our house.",
)


def main() -> None:
    recorded = [json.loads(line)["transcript"] for line in CORPUS.read_text().splitlines()]
    texts = {"digits": digit_strings(), "reordered": REORDERED, "unseen": UNSEEN}
    check(texts, recorded)
    lines = [
        json.dumps({"id": f"{category}-{number:02d}", "category": category, "text": text})
        for category, members in texts.items()
        for number, text in enumerate(members, start=1)
    ]
    SUITE.parent.mkdir(parents=True, exist_ok=True)
    SUITE.write_text("\n".join(lines) + "\n")
    print(f"{SUITE.relative_to(ROOT)}: {len(lines)} texts")


def digit_strings() -> tuple[str, ...]:
    """Different strings, in the order of their lengths."""
    random_digits = random.Random(SEED)
    strings: dict[str, None] = {}
    for length in LENGTHS:
        wanted = len(strings) + STRINGS_A_LENGTH
        while len(strings) < wanted:
            strings[" ".join(random_digits.choices(DIGITS, k=length))] = None
    return tuple(strings)


def check(texts: dict[str, tuple[str, ...]], recorded: list[str]) -> None:
    said = {normalize_for_match(text) for text in recorded}
    words = {word for text in said for word in text.split()}
    for category, members in texts.items():
        for text in members:
            own = normalize_for_match(text)
            new = [word for word in own.split() if word not in words]
            if own in said:
                raise SystemExit(f"{category}: {text!r} was recorded")
            if category == "unseen" and not new:
                raise SystemExit(f"unseen: every word of {text!r} was recorded")
            if category != "unseen" and new:
                raise SystemExit(f"{category}: {text!r} has words that were not recorded: {new}")


if __name__ == "__main__":
    main()
