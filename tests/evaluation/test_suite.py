"""The demo's suite is held out, and a bad suite is refused with its line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tts_assets.config import ConfigError
from tts_assets.evaluation.suite import SuiteText, known_texts, read_suite

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_demo_says_nothing_it_was_trained_on() -> None:
    suite = read_suite(EXAMPLES / "suites" / "announcer.jsonl")
    corpus = EXAMPLES / "corpora" / "asterisk_en" / "samples.jsonl"
    recorded = [json.loads(line)["transcript"] for line in corpus.read_text().splitlines()]
    prompts = (EXAMPLES / "texts" / "announcer_rlhf.txt").read_text().splitlines()
    assert Counter(text.category for text in suite) == {"digits": 40, "reordered": 20, "unseen": 15}
    assert known_texts(suite, recorded) == []
    assert known_texts(suite, [line for line in prompts if line.strip()]) == []


def test_a_known_text_is_found_however_it_is_written() -> None:
    text = SuiteText(id="a", category="digits", text="One, two.")
    assert known_texts([text], ["1 2"]) == [text]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a", "category": "x", "text": "hello"'], "suite.jsonl:1: not JSON"),
        (['{"id": "a", "category": "x", "txt": "hello"}'], "did you mean 'text'"),
        (['{"id": "a", "category": "x", "text": "..."}'], "suite.jsonl:1: no words"),
        (['{"id": "../a", "category": "x", "text": "hello"}'], "cannot name a file"),
        (['{"id": "a", "category": "x", "text": "hello"}'] * 2, "ids used twice"),
        ([], "no texts"),
    ],
)
def test_a_bad_suite_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message):
        read_suite(path)
