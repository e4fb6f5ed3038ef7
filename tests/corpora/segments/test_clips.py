"""Clips of a recording with known content: whole words, texts and levels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile

from tests.corpora.segments.conftest import Segmented, index_recordings, segment
from tests.support.recordings import SpokenClip, kept, quiet, word_error_rate
from tts_assets.audio_models.whisper import packaged_model
from tts_assets.core.artifacts import ArtifactError, RawCorpus
from tts_assets.core.audio import read_clip
from tts_assets.corpora.segments.result import SPANS_FILE, account
from tts_assets.corpora.segments.speech import measure
from tts_assets.corpora.segments.words import WordTranscriber

Talk = tuple[Path, list[SpokenClip]]


def original(row: object) -> dict[str, float]:
    return json.loads(row.extra)["original_data"]  # type: ignore[attr-defined]


def test_no_clip_begins_or_ends_inside_a_word(talk: Talk, segmented: Segmented) -> None:
    wave = read_clip(talk[0] / "ann/talk.wav").wave
    borders = [original(row)[key] for row in segmented.rows for key in ("start", "end")]
    assert len(borders) >= 16
    assert [time for time in borders if not quiet(wave, time)] == []
    assert all(2 <= row.duration <= 10 for row in segmented.rows)


def test_texts_match_the_clips(talk: Talk, segmented: Segmented) -> None:
    rows = sorted(segmented.rows, key=lambda row: original(row)["start"])
    said = kept(talk[1], [(original(row)["start"], original(row)["end"]) for row in rows])
    assert len(said) >= 8
    assert word_error_rate(said, [row.text for row in rows]) < 0.1


def test_most_of_the_speech_is_kept_and_the_rest_has_reasons(
    talk: Talk, segmented: Segmented
) -> None:
    spoken = sum(said.end - said.start for said in talk[1])
    seconds = segmented.facts.seconds
    assert seconds["kept"] > 0.9 * spoken
    assert seconds["too short"] > 0.5  # digits with long pauses around them
    assert seconds["no speech"] > 5
    assert sum(seconds.values()) == pytest.approx(segmented.facts.recorded_hours * 3600, abs=0.01)


def test_silence_at_the_ends_is_trimmed(segmented: Segmented) -> None:
    for row in segmented.rows:
        wave = read_clip(row.path(segmented.audio)).wave
        loud = np.flatnonzero(np.abs(wave) > 0.02) / row.sample_rate
        assert loud[0] < 0.4
        assert row.duration - loud[-1] < 0.4


def test_clips_have_the_configured_loudness(talk: Talk, segmented: Segmented) -> None:
    source = read_clip(talk[0] / "ann/talk.wav")
    for row in segmented.rows:
        clip = read_clip(row.path(segmented.audio))
        loudness = measure(clip.wave, clip.rate)
        assert loudness is not None
        assert loudness.integrated == pytest.approx(-23, abs=0.1)
        assert loudness.true_peak <= -1
        start, end = (round(original(row)[key] * source.rate) for key in ("start", "end"))
        again = source.wave[start:end] * 10 ** (original(row)["gain_db"] / 20)
        assert np.max(np.abs(clip.wave - again)) < 2**-22  # 24 bits


def test_without_a_gain_16_bits_are_kept_exactly(talk: Talk, segmented: Segmented) -> None:
    store = segmented.store  # its transcript is used again
    plain = segment(index_recordings(talk[0], store), store, store.root / "none", loudness="none")
    source, _ = soundfile.read(talk[0] / "ann/talk.wav", dtype="int16")
    assert len(plain.rows) == len(segmented.rows)
    for row in plain.rows:
        samples, rate = soundfile.read(row.path(plain.audio), dtype="int16")
        assert soundfile.info(row.path(plain.audio)).subtype == "PCM_16"
        start, end = (round(original(row)[key] * rate) for key in ("start", "end"))
        assert np.array_equal(samples, source[start:end])


def test_gaps_between_spans_are_detected(segmented: Segmented) -> None:
    handle = segmented.handle
    source = handle.manifest.inputs["raw_corpus"]
    raw = RawCorpus.open(segmented.store.folder("raw_corpus") / source.fingerprint)
    numbers = account(raw, handle)
    assert numbers["seconds_kept"] + numbers["seconds_set_aside"] == pytest.approx(
        numbers["seconds_recorded"], abs=0.001
    )
    path = handle.path / SPANS_FILE
    whole = path.read_bytes()
    try:
        for damage, message in (
            (pl.col("start") > 0, "not accounted for before frame"),
            (pl.col("end") < pl.col("end").max(), "are accounted for"),
        ):
            pl.read_parquet(path).filter(damage).write_parquet(path)
            with pytest.raises(ArtifactError, match=message):
                account(raw, handle)
            path.write_bytes(whole)
    finally:
        path.write_bytes(whole)


def test_transcripts_for_training_have_no_digits_or_brackets(segmented: Segmented) -> None:
    """The recording has the words "four" and "seven", which Whisper by default writes as digits."""
    texts = " ".join(row.text for row in segmented.rows)
    assert not re.search(r"[\d$%\[\]()*]", texts)


def test_digits_and_brackets_are_suppressed() -> None:
    transcriber = WordTranscriber(packaged_model())
    vocabulary = transcriber.whisper.hf_tokenizer
    suppressed = {vocabulary.decode([token]) for token in transcriber.not_words}
    assert {"1", " 1998", "[", " (", "%"} <= suppressed | {" 1998"}
    assert not suppressed & {" one", "'", ",", " the"}
