"""Make ``examples/texts/announcer_rlhf.txt``: what the demo's policy says while GRPO trains it.

    python scripts/make_announcer_rlhf.py

240 texts, drawn with a fixed seed: sentences of ``examples/texts/codec_en.txt``, which the base has
not read, and strings of 3 to 7 digits. None is in the evaluation suites or was recorded.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tts_assets.audio_models.wer import normalize_for_match

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples" / "corpora" / "asterisk_en" / "samples.jsonl"
SENTENCES = ROOT / "examples" / "texts" / "codec_en.txt"
SUITES = [ROOT / "examples" / "suites" / f"{name}.jsonl" for name in ("announcer", "everyday")]
TEXTS = ROOT / "examples" / "texts" / "announcer_rlhf.txt"

SEED = 20_261_122
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTHS = range(3, 8)
STRINGS_A_LENGTH = 8
SENTENCES_DRAWN = 200
WORDS = range(4, 10)  # of a sentence: 1.5 to 4 s


def main() -> None:
    suite = [json.loads(line)["text"] for path in SUITES for line in path.open()]
    recorded = [json.loads(line)["transcript"] for line in CORPUS.read_text().splitlines()]
    taken = {normalize_for_match(text) for text in (*suite, *recorded)}
    draw = random.Random(SEED)
    strings = digit_strings(draw, taken)
    texts = strings + draw.sample(sentences(taken), SENTENCES_DRAWN)
    draw.shuffle(texts)
    TEXTS.parent.mkdir(parents=True, exist_ok=True)
    TEXTS.write_text("# Made by scripts/make_announcer_rlhf.py\n" + "\n".join(texts) + "\n")
    print(f"{TEXTS.relative_to(ROOT)}: {len(texts)} texts")


def sentences(taken: set[str]) -> list[str]:
    """Sentences of ``WORDS`` words that are not ``taken``."""
    lines = SENTENCES.read_text().splitlines()[1:]  # without the comment
    fitting = (line for line in lines if len(line.split()) in WORDS)
    return [line for line in fitting if normalize_for_match(line) not in taken]


def digit_strings(draw: random.Random, taken: set[str]) -> list[str]:
    """Different strings, in the order of their lengths."""
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
