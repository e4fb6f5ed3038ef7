"""The texts of the demo's base model and codec: readable, and unlike every evaluation suite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.make_base_texts import TEXTS, WORDS, Unseen, suite_texts
from tts_assets.audio_models.wer import normalize_for_match
from tts_assets.corpora.config import TextConfig
from tts_assets.corpora.synthesis import read_texts
from tts_assets.corpora.text import Normalizer

ROOT = Path(__file__).resolve().parents[2]
TEXTS_OF_BOTH = [TEXTS / "base_en.txt", TEXTS / "codec_en.txt"]


def both() -> list[str]:
    """The texts of the base, then those of the codec."""
    return [text for path in TEXTS_OF_BOTH for text in read_texts(path)]


@pytest.mark.slow
def test_the_everyday_suite_is_in_no_corpus() -> None:
    corpus = ROOT / "examples/corpora/asterisk_en/samples.jsonl"
    recorded = [json.loads(line)["transcript"] for line in corpus.read_text().splitlines()]
    known = {normalize_for_match(text) for text in (*recorded, *both())}
    suite = (ROOT / "examples/suites/everyday.jsonl").read_text().splitlines()
    texts = [json.loads(line) for line in suite]
    assert sum(text["category"] == "sentences" for text in texts) >= 60
    assert not known & {normalize_for_match(text["text"]) for text in texts}


def test_the_texts_are_spoken_as_they_are_written() -> None:
    texts = both()
    assert len(texts) > 15_000
    assert all(len(text.split()) <= max(WORDS) + 10 for text in texts)
    sample = texts[::50]
    assert Normalizer(TextConfig()).many(sample, "en") == sample


@pytest.mark.slow
def test_no_text_resembles_one_of_a_suite() -> None:
    texts = both()
    assert Unseen(suite_texts()).only(texts) == texts
