"""Text as it is spoken, and which samples are kept."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from tests.conftest import CORPUS
from tts_assets.corpora.config import FilterConfig
from tts_assets.corpora.filters import rejection
from tts_assets.corpora.index import Utterance
from tts_assets.corpora.samples import Sample
from tts_assets.corpora.text import normalize

PROMPTS = CORPUS / "samples.jsonl"


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        ("Press 1 now.", "Press one now."),
        ("Press the # key", "Press the pound key"),
        ("dial 007", "dial zero zero seven"),
        ("the 21st  of\tMay", "the twenty-first of May"),
        ("3D audio", "three D audio"),
        ("It’s “fine” – really…", 'It\'s "fine" - really...'),
        ("1,250 calls", "one thousand, two hundred and fifty calls"),
        ("#1 of 28.80", "number one of twenty-eight point eight zero"),
        ("H.323 at -5 %", "H three hundred and twenty-three at minus five percent"),
        ("call 555-1234", "call five five five, one two three four"),
        ("at 10:05 or 12:00", "at ten oh five or twelve o'clock"),
        (
            "$1.01, £20, €3.5 million",
            "one dollar and one cent, twenty pounds, three point five million euros",
        ),
        ("version 1.2.3", "version one two three"),
        ("12345678901", "one two three four five six seven eight nine zero one"),
        ("in\u00advis\u200bi\x00ble", "invisible"),
        ("...", ""),
        ("", ""),
        ("  \n", ""),
    ],
)
def test_english(raw: str, spoken: str) -> None:
    assert normalize(raw, "en") == spoken


def test_other_languages_and_unknown_ones() -> None:
    assert normalize("2 perros", "es") == "dos perros"
    assert normalize("Hány 3 óra?", "hu") == "Hány három óra?"
    assert normalize("1.250,5 Meter", "de") == "eintausendzweihundertfünfzig Komma fünf Meter"
    assert normalize("3.5 Meter", "de-AT") == "drei Komma fünf Meter"
    assert normalize("5 foo 3.50", "xx") == "5 foo 3.50"


def test_normalizing_twice_changes_nothing() -> None:
    """A transcript is normalized when it is filtered, and again when a voice is made of it."""
    texts = [json.loads(line)["transcript"] for line in PROMPTS.read_text().splitlines()]
    assert sum(any(map(str.isdigit, text)) for text in texts) > 50
    for text in [*texts, "Call 42 & press * or # by the 3rd at 10:00 for $5.50."]:
        once = normalize(text, "en")
        assert not any(map(str.isdigit, once))
        assert normalize(once, "en") == once


def utterance(**changes: object) -> tuple[Utterance, Sample]:
    values: dict[str, object] = {
        "id": "0",
        "audio": "a.wav",
        "pooled": False,
        "audio_sha256": "0",
        "duration": 2.0,
        "sample_rate": 16_000,
        "channels": 1,
        "speaker": "",
        "language": "en",
        "text": "hello there",
        "licence": "",
        "extra": "{}",
        **{key: value for key, value in changes.items() if key != "dnsmos"},
    }
    row = Utterance(**values)  # type: ignore[arg-type]
    sample = Sample(
        id="0",
        wav_path="a.wav",
        transcript=normalize(row.text, "en"),
        dnsmos_mos_ovr=float(changes.get("dnsmos", 0.0)),  # type: ignore[arg-type]
    )
    return row, sample


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"text": " "}, "empty transcript"),
        ({"language": "de"}, "language not allowed"),
        ({"language": "eng"}, "language not allowed"),
        ({"language": "en-GB"}, None),
        ({"duration": 31.0}, "too long"),
        ({"text": "?!"}, "nothing to speak"),
        ({"sample_rate": 4000}, "sample rate too low"),
        ({"dnsmos": 2.0}, "DNSMOS too low"),
        ({"duration": 0.1}, "too short"),
        ({"text": "far too many words for so little speech " * 9}, "more text than speech"),
        ({"text": "", "language": "de", "duration": 99.0}, "empty transcript"),
    ],
)
def test_the_first_filter_that_hits_names_the_reason(
    changes: dict[str, object], reason: str | None
) -> None:
    config = FilterConfig(allowed_languages=("en",), min_dnsmos=3.0)
    assert rejection(*utterance(**changes), config) == reason


def test_impossible_filters_are_refused() -> None:
    with pytest.raises(ValidationError, match="raise max_duration"):
        FilterConfig(min_duration=5, max_duration=4)
    with pytest.raises(ValidationError, match="write one like 'en'"):
        FilterConfig(allowed_languages=("English",))
    with pytest.raises(ValidationError, match="did you mean 'max_duration'"):
        FilterConfig.model_validate({"max_durations": 4})
