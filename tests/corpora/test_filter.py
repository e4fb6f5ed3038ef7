"""Filters of samples, in a corpus and in any JSONL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import FilterConfig, TextConfig
from tts_assets.corpora.filter import Counts, FilterProgram, filter_files, first_hit, of_samples
from tts_assets.corpora.samples import Sample, check_line, read_samples

Lines = list[dict[str, Any]]


def sample(**fields: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "wav_path": "/a.wav",
        "transcript": "hello there",
        "language": "en",
        "duration": 2.0,
        "sample_rate": 16_000,
        **fields,
    }


def filtered(folder: Path, text: str | bytes, **filters: Any) -> tuple[Lines, Lines, Counts]:
    """Kept and rejected lines of a sample file."""
    folder.mkdir(exist_ok=True)
    source = folder / "in.jsonl"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    program = FilterProgram(run_dir=folder, samples=(source,), filters=FilterConfig(**filters))
    counts = filter_files(program, folder, folder)
    kept, rejected = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("kept.jsonl", "rejected.jsonl")
    )
    assert (counts.kept, counts.rejected) == (len(kept), len(rejected))
    assert counts.samples_in == len(kept) + len(rejected)
    return kept, rejected, counts


def jsonl(*samples: dict[str, Any]) -> str:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in samples)


@pytest.mark.parametrize(
    ("changes", "reason", "value", "limit"),
    [
        ({}, None, None, None),
        ({"text": " "}, "empty transcript", None, None),
        ({"language": "de"}, "language not allowed", "de", "en"),
        ({"language": "eng"}, "language not allowed", "eng", "en"),
        ({"language": "en-GB"}, None, None, None),
        ({"duration": 31.5}, "too long", 31.5, 30.0),
        ({"text": "?!"}, "nothing to speak", "?!", None),
        ({"sample_rate": 4000}, "sample rate too low", 4000, 8000),
        ({"dnsmos_mos_ovr": 2.5}, "DNSMOS too low", 2.5, 3.0),
        ({"dnsmos_mos_ovr": 0.0}, None, None, None),
        ({"duration": 0.1}, "too short", 0.1, 0.2),
        ({"text": "too much " * 20}, "more text than speech", 89.5, 40.0),
        ({"duration": 12.0}, "more speech than text", 11 / 12, 1.0),
        ({"text": "", "language": "de", "duration": 99.0}, "empty transcript", None, None),
    ],
)
def test_the_first_filter_gives_reason_value_and_limit(
    changes: dict[str, Any], reason: str | None, value: Any, limit: Any, tmp_path: Path
) -> None:
    if "text" in changes:
        changes = {**changes, "transcript": changes["text"]}
        del changes["text"]
    kept, rejected, counts = filtered(
        tmp_path,
        jsonl(sample(**changes)),
        allowed_languages=["en"],
        min_dnsmos=3.0,
        min_characters_per_second=1.0,
    )
    assert counts.reasons == ({reason: 1} if reason else {})
    if reason is None:
        assert kept
        return
    (line,) = rejected
    assert (line["reason"], line["limit"]) == (reason, limit)
    assert line["value"] == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize("text", ["(beep)", "Well [music] then", "*laughs* yes", "[ Applause ]"])
def test_annotations_of_sounds_are_rejected(tmp_path: Path, text: str) -> None:
    rows = [sample(transcript=text), sample(transcript="the (second) music of speech")]
    kept, rejected, _ = filtered(tmp_path, jsonl(*rows))
    assert [line["reason"] for line in rejected] == ["non-speech annotation"]
    assert len(kept) == 1


def test_a_metric_that_could_not_be_measured_rejects_the_sample() -> None:
    config = FilterConfig(min_snr=10, min_p808=3, max_wer=0.2, min_dnsmos=2)
    row = {"snr": 20.0, "p808": 4.0, "wer": 0.0, "dnsmos_mos_ovr": 3.0}
    columns = {
        "id": "a", "wav_path": "a.wav", "text": "one two", "transcript": "one two",
        "duration": 1.0, "sample_rate": 16_000, "unreadable": None, "language": "en", "unread": "",
        "dropped": False,
    }  # fmt: skip
    for name, reason in (
        ("snr", "SNR not measured"),
        ("p808", "P.808 not measured"),
        ("wer", "WER not measured"),
        ("dnsmos_mos_ovr", "DNSMOS not measured"),
    ):
        unknown = 0.0 if name == "dnsmos_mos_ovr" else None
        rows = pl.DataFrame([{**columns, **row}, {**columns, **row, name: unknown}])
        found = rows.select(first_hit(of_samples(config, opened=True)))
        assert found.to_series().to_list() == [None, reason]


def test_a_line_that_is_too_long_is_rejected(tmp_path: Path) -> None:
    long = sample(transcript="one " * 500_000)
    kept, rejected, counts = filtered(tmp_path, jsonl(sample(), long, sample(id="b")))
    assert (len(kept), [line["reason"] for line in rejected]) == (2, ["line too long"])
    assert counts.samples_in == 3


def test_reasons_are_counted_in_the_order_of_the_filters(tmp_path: Path) -> None:
    rows = [sample(duration=0.1), sample(duration=0.1), sample(transcript=""), sample(duration=50)]
    *_, counts = filtered(tmp_path, jsonl(*rows, sample()))
    assert list(counts.reasons.items()) == [
        ("empty transcript", 1),
        ("too long", 1),
        ("too short", 2),
    ]
    assert counts.hours == pytest.approx(2 / 3600, abs=1e-6)


def test_kept_lines_have_the_order_of_the_schema(tmp_path: Path) -> None:
    original = {"deep": {"list": [1, 2.5, None, True]}, 'é"\t': 'a "quote" \\ and\nline'}
    given = sample(transcript='Press 1,  "Müller" \u0001now', original_data=original, style="calm")
    given = dict(reversed(given.items())) | {"unknown": 3}
    filtered(tmp_path, jsonl(given))
    text = (tmp_path / "kept.jsonl").read_text(encoding="utf-8")
    assert text.startswith(
        '{"id":"a","wav_path":"/a.wav","transcript":"Press one, \\"Müller\\" now"'
    )
    (kept,) = read_samples(tmp_path / "kept.jsonl")
    assert list(json.loads(text)) == list(Sample.model_fields)
    assert kept.original_data == {**original, "text": given["transcript"]}
    assert (kept.style, kept.duration, kept.dnsmos_mos_ovr) == ("calm", 2.0, 0.0)


def test_ids_of_samples_without_id_are_deterministic(tmp_path: Path) -> None:
    rows = [{k: v for k, v in sample(transcript=t).items() if k != "id"} for t in ("a", "b", "a")]
    kept, *_ = filtered(tmp_path, jsonl(*rows))
    ids = [line["id"] for line in kept]
    assert ids[0] == ids[2] != ids[1]
    assert len(ids[0]) == 16


BAD = {
    "not JSON": b'{"wav_path": "a',
    "not a JSON object": b"[1, 2]",
    "no wav_path": b'{"transcript": "a"}',
    "a field of another type": b'{"wav_path": "a", "duration": "long"}',
    "not UTF-8": b'{"wav_path": "\xff"}',
}


def test_bad_lines_are_rejected_with_file_and_line(tmp_path: Path) -> None:
    good = jsonl(sample()).strip().encode()
    lines = [
        b"\xef\xbb\xbf" + good,
        *BAD.values(),
        b"",
        good,
        b'{"wav_path": "a", "duration": NaN}',
    ]
    kept, rejected, counts = filtered(tmp_path, b"\r\n".join(lines))
    assert len(kept) == 2
    places = {line["reason"]: line["where"].rsplit(":", 1)[1] for line in rejected[:-1]}
    assert places == {reason: str(number) for number, reason in enumerate(BAD, start=2)}
    assert rejected[-1]["where"].endswith("in.jsonl:9")
    assert counts.reasons["not JSON"] == 2


def test_numbers_written_as_text_are_read(tmp_path: Path) -> None:
    assert check_line(b'{"wav_path": "a", "duration": "2.5"}')["duration"] == 2.5
    kept, *_ = filtered(tmp_path, jsonl(sample(duration="2.5", sample_rate="16000")))
    assert (kept[0]["duration"], kept[0]["sample_rate"]) == (2.5, 16_000)


def test_an_empty_file_has_no_samples(tmp_path: Path) -> None:
    assert filtered(tmp_path, "")[2].samples_in == 0


def test_the_first_of_equal_texts_stays(tmp_path: Path) -> None:
    rows = [
        sample(id="1", transcript="Hello."),
        sample(id="2", transcript="hello", speaker_id="b"),
        sample(id="3", transcript="hello", duration=99),
        sample(id="4", transcript="HELLO!", speaker_id="b"),
    ]
    kept, rejected, _ = filtered(tmp_path, jsonl(*rows), duplicate_text="reject")
    assert [line["id"] for line in kept] == ["1"]
    assert [(line["reason"], line["value"]) for line in rejected] == [
        ("duplicate text", "1"),
        ("too long", 99.0),
        ("duplicate text", "1"),
    ]
    kept, *_ = filtered(tmp_path, jsonl(*rows), duplicate_text="reject_of_speaker")
    assert [line["id"] for line in kept] == ["1", "2"]


def test_percentiles_are_computed_from_remaining_samples(tmp_path: Path) -> None:
    rows = [sample(id=str(n), transcript="a" * n) for n in range(1, 21)]
    slow = [sample(id=f"long {n}", transcript="a", duration=40) for n in range(50)]
    kept, rejected, counts = filtered(
        tmp_path, jsonl(*rows, *slow), slowest_percent=10, fastest_percent=5
    )
    assert counts.reasons == {"too long": 50, "among the slowest": 2, "among the fastest": 1}
    assert [line["id"] for line in kept] == [str(n) for n in range(3, 20)]
    assert {line["limit"] for line in rejected if line["reason"] == "among the slowest"} == {1.5}


def test_without_text_keeps_samples_without_transcript(tmp_path: Path) -> None:
    rows = [sample(transcript=""), sample(transcript="", duration=99)]
    *_, counts = filtered(tmp_path, jsonl(*rows), without_text=True)
    assert (counts.kept, counts.reasons) == (1, {"too long": 1})
    with pytest.raises(ValidationError, match="max_wer needs it"):
        FilterConfig(without_text=True, max_wer=0.3)
    with pytest.raises(ValidationError, match="measure wer needs it"):
        FilterConfig(without_text=True, measure=("wer",))


def test_corpus_filters_override_the_global_ones() -> None:
    everywhere = FilterConfig(max_duration=20, max_wer=0.2)
    mine = everywhere.for_corpus({"max_duration": 5}, "mine")
    assert (mine.max_duration, mine.max_wer) == (5, 0.2)
    voices = everywhere.for_corpus({"without_text": True}, "voices")
    assert (voices.max_duration, voices.max_wer) == (20, None)
    with pytest.raises(ConfigError, match="did you mean 'max_duration'"):
        everywhere.for_corpus({"max_durations": 5}, "mine")


def test_impossible_filters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="raise max_duration"):
        FilterConfig(min_duration=5, max_duration=4)
    with pytest.raises(ValidationError, match="write one like 'en'"):
        FilterConfig(allowed_languages=("English",))
    with pytest.raises(ValidationError, match="leave nothing between them"):
        FilterConfig(slowest_percent=60, fastest_percent=40)
    with pytest.raises(ValidationError, match="min_snr"):
        FilterConfig(min_snr="loud")
    with pytest.raises(ValidationError, match="snr: this program opens no audio"):
        FilterProgram(run_dir=tmp_path, samples=(tmp_path,), filters=FilterConfig(min_snr=20))


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [
        sample(id=f"{n}", transcript=f"number {n % 700}  of {n}", duration=n % 37 + 0.5)
        for n in range(30_000)
    ]
    (tmp_path / "in.jsonl").write_text(jsonl(*rows))
    found = []
    for threads in ("1", "3"):
        run = tmp_path / threads
        program = FilterProgram(
            run_dir=run,
            samples=(tmp_path / "in.jsonl",),
            filters=FilterConfig(duplicate_text="reject", slowest_percent=1),
            text=TextConfig(),
        )
        run.mkdir()
        (run / "run.json").write_text(program.to_json())
        subprocess.run(
            [sys.executable, "-m", "tts_assets.corpora.filter", str(run / "run.json")],
            check=True,
            env={**os.environ, "POLARS_MAX_THREADS": threads},
        )
        facts = json.loads((run / "result.json").read_text())
        assert facts["samples_in"] == 30_000
        files = [run / "result" / name for name in ("kept.jsonl", "rejected.jsonl")]
        found.append((facts, [file.read_bytes() for file in files]))
    assert found[0] == found[1]
