"""Make ``examples/texts/announcer_rlhf.txt``: what the demo's policy says while GRPO trains it.

    python scripts/make_announcer_rlhf.py

240 strings of 3 to 7 spoken digits, drawn with a fixed seed; none is in the evaluation suite or was
recorded. Sentences are left out: with 48 announcements among the texts, the reward of a step told
mostly how many of them it had, and one of three seeds fell (benchmarks/grpo-2026-11-23.md).
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tts_assets.audio_models.wer import normalize_for_match

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples" / "corpora" / "asterisk_en" / "samples.jsonl"
SUITE = ROOT / "examples" / "suites" / "announcer.jsonl"
TEXTS = ROOT / "examples" / "texts" / "announcer_rlhf.txt"

SEED = 20_261_122
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = range(3, 8)
STRINGS_A_LENGTH = 48


def main() -> None:
    suite = [json.loads(line)["text"] for line in SUITE.read_text().splitlines()]
    recorded = [json.loads(line)["transcript"] for line in CORPUS.read_text().splitlines()]
    taken = {normalize_for_match(text) for text in (*suite, *recorded)}
    texts = digit_strings(taken)
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


if __name__ == "__main__":
    main()
