"""Text normalizers on the reference lists of ``tests/normalization/readings``.

    python benchmarks/text_normalizers.py project num2words nemo wetext spokenform damga

prints, for every normalizer and language, the fraction of strings that are read as one of the
readings of the list, and the seconds per string. A normalizer must be installed in the environment.
Case, punctuation and word boundaries do not count, because they are silent; neither does the "and"
after an English "hundred".
"""

from __future__ import annotations

import argparse
import json
import re
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

READINGS = Path(__file__).resolve().parents[1] / "tests/normalization/readings"
Read = Callable[[str], str]
SAME = str.maketrans({"ё": "е", "ँ": "ं", "〇": "零"})
AND = re.compile(r"\b(hundred|thousand|million|billion) and\b")


def letters(text: str, language: str) -> str:
    """What is pronounced of a text: its letters, marks and unread symbols."""
    text = unicodedata.normalize("NFC", text.lower()).translate(SAME)
    if language == "en":
        text = AND.sub(r"\1", text.replace("-", " "))
    return "".join(c for c in text if unicodedata.category(c)[0] in "LMNS" or c in "%#&*@")


def read_list(path: Path) -> list[tuple[str, list[str]]]:
    """The written forms of a list and their readings."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("# w")]
    pairs = [line.split(" => ", 1) for line in lines if line]
    return [(written, readings.split(" | ")) for written, readings in pairs]


def project(language: str) -> Read:
    from tts_assets.normalization.front_end import normalize

    return lambda text: normalize(text, language)


def num2words_only(language: str) -> Read:
    from num2words import num2words

    return lambda text: re.sub(r"\d+", lambda m: num2words(int(m[0]), lang=language), text)


def nemo(language: str) -> Read:
    import logging

    from nemo_text_processing.text_normalization.normalize import Normalizer

    logging.disable(logging.WARNING)
    grammar = Normalizer(input_case="cased", lang=language, cache_dir="/tmp/nemo-grammars")
    return lambda text: grammar.normalize(text, verbose=False)


def wetext(language: str) -> Read:
    from wetext import Normalizer

    return Normalizer(lang=language, operator="tn").normalize


def spokenform(language: str) -> Read:
    from spokenform import prepare

    return lambda text: prepare(text, language=language, normalize_literals=True).text


def damga(language: str) -> Read:
    from damga import TextNormalizer

    return TextNormalizer(lang=language).normalize


def normt2s(language: str) -> Read:
    from normt2s import get_normalizer

    return get_normalizer(language).normalize


def voxnorm(language: str) -> Read:
    from voxnorm import normalize

    return lambda text: normalize(text, lang={"zh": "zh-CN"}.get(language, language))


NORMALIZERS = {
    "project": project,
    "num2words": num2words_only,
    "nemo": nemo,
    "wetext": wetext,
    "spokenform": spokenform,
    "damga": damga,
    "normt2s": normt2s,
    "voxnorm": voxnorm,
}


def measure(
    name: str, language: str, folder: Path, wrong: list[tuple[str, str, str]]
) -> dict[str, float] | None:
    """Fraction of correct strings, seconds per string; None if it does not have the language."""
    pairs = read_list(folder / f"{language}.txt")
    try:
        read = NORMALIZERS[name](language)
        read("one")
    except Exception:  # noqa: BLE001, every package has its own error for an unknown language
        return None
    right, start = 0, time.perf_counter()
    for written, readings in pairs:
        try:
            spoken = read(written)
        except Exception as error:  # noqa: BLE001, a string that stops a normalizer is misread
            spoken = repr(error)
        expected = {letters(reading, language) for reading in readings}
        if letters(spoken, language) in expected:
            right += 1
        else:
            wrong.append((written, readings[0], spoken))
    seconds = (time.perf_counter() - start) / len(pairs)
    return {"right": round(right / len(pairs), 3), "seconds": round(seconds, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=NORMALIZERS)
    parser.add_argument("--languages", default=None, help="separated by commas")
    parser.add_argument("--wrong", action="store_true", help="print the strings that are misread")
    parser.add_argument("--second", action="store_true", help="the second lists")
    options = parser.parse_args()
    folder = READINGS / "second" if options.second else READINGS
    every = sorted(path.stem for path in READINGS.glob("*.txt"))
    for language in options.languages.split(",") if options.languages else every:
        for name in options.names:
            wrong: list[tuple[str, str, str]] = []
            result = measure(name, language, folder, wrong)
            print(json.dumps({"language": language, "normalizer": name, **(result or {})}))
            for row in wrong if options.wrong else ():
                print("   ", " | ".join(row))


if __name__ == "__main__":
    main()
