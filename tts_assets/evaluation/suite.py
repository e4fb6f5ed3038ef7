"""The suite: fixed texts, in categories, that every model is asked to say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tts_assets.config import Config, ConfigError
from tts_assets.hearing.text_match import normalize_for_match

SUITE_FILE = "suite.jsonl"


class SuiteText(Config):
    """One line of a suite."""

    id: str
    category: str
    text: str


def read_suite(path: Path, language: str = "en") -> list[SuiteText]:
    """Read and check a suite. Raises :class:`ConfigError` naming the file and the line."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such suite; [evaluation] suite names a JSONL file")
    texts: list[SuiteText] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: not JSON ({error})") from None
        text = SuiteText.parse(values, where)
        if not normalize_for_match(text.text, language):
            raise ConfigError(f"{where}: no words in {text.text!r}")
        if not text.id or Path(text.id).name != text.id:
            raise ConfigError(f"{where}: id {text.id!r} cannot name a file")
        texts.append(text)
    twice = [name for name, count in Counter(text.id for text in texts).items() if count > 1]
    if twice or not texts:
        raise ConfigError(f"{path}: {f'ids used twice: {twice}' if twice else 'no texts'}")
    return texts


def write_suite(path: Path, texts: Iterable[SuiteText]) -> None:
    lines = [json.dumps(text.model_dump(), ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines))


def known_texts(
    suite: Sequence[SuiteText], trained_on: Iterable[str], language: str = "en"
) -> list[SuiteText]:
    """Texts of the suite that equal one of ``trained_on``, by the rules of the text match."""
    known = {normalize_for_match(text, language) for text in trained_on}
    return [text for text in suite if normalize_for_match(text.text, language) in known]
