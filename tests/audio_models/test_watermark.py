"""The watermark of synthetic speech on real clips."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from tts_assets.audio_models import watermark
from tts_assets.audio_models.watermark import (
    PRESENT,
    Watermarker,
    WatermarkUnavailable,
    detect,
    mark,
    networks,
)
from tts_assets.core.audio import Clip, Wave, resample

Recordings = dict[str, tuple[str, Clip]]


@pytest.fixture
def clip(recordings: Recordings) -> Clip:
    return recordings["conf-invalid"][1]


def level(difference: Wave, wave: Wave) -> float:
    """The level of a difference below a wave in dB."""
    return float(10 * np.log10((wave**2).sum() / (difference**2).sum()))


def test_marked_speech_is_detected_and_recordings_are_not(recordings: Recordings) -> None:
    for _, clip in list(recordings.values())[5:10]:  # sentences: single words may score above 0.5
        marked = mark(clip.wave, clip.rate)
        before, after = detect(clip.wave, clip.rate), detect(marked, clip.rate)
        assert before is not None and after is not None
        assert before < PRESENT < 0.95 < after


def test_the_mark_is_quiet_and_below_2_khz(clip: Clip) -> None:
    difference = mark(clip.wave, clip.rate) - clip.wave
    assert level(difference, clip.wave) > 13
    power = np.abs(np.fft.rfft(difference)) ** 2
    above = np.fft.rfftfreq(len(difference), 1 / clip.rate) > 2_100
    assert power[above].sum() < 1e-6 * power.sum()


@pytest.mark.parametrize("rate", [22_050, 24_000, 44_100, 48_000])
def test_every_sample_rate(clip: Clip, rate: int) -> None:
    wave = resample(clip.wave, clip.rate, rate)
    marked = mark(wave, rate)
    at_16_khz = mark(clip.wave, clip.rate) - clip.wave
    assert (
        level(resample(marked - wave, rate, 16_000)[: len(at_16_khz)] - at_16_khz, at_16_khz) > 20
    )
    score = detect(marked, rate)
    assert score is not None and score > 0.95


def test_a_stream_of_chunks_is_marked_without_delay_and_without_steps(clip: Clip) -> None:
    watermarker, cuts = Watermarker(clip.rate), np.cumsum([4_800, 5_120, 0, 300, 10_240])
    chunks = [watermarker.push(part) for part in np.split(clip.wave, cuts)]
    assert [len(chunk) for chunk in chunks[:5]] == [4_800, 5_120, 0, 300, 10_240]
    wave = np.concatenate(chunks)
    score = detect(wave, clip.rate)
    assert score is not None and score > 0.95
    difference = wave - clip.wave
    for cut in cuts:
        assert np.abs(difference[cut - 2 : cut + 2]).max() < 1e-3  # 300 samples have no mark


def test_a_long_clip_is_marked_in_blocks_of_frames(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = mark(clip.wave, clip.rate)
    monkeypatch.setattr(watermark, "BLOCK", 7)
    assert np.allclose(mark(clip.wave, clip.rate), at_once, atol=1e-5)


def test_the_past_of_a_chunk_is_seen(clip: Clip) -> None:
    watermarker = Watermarker(clip.rate)
    watermarker.push(clip.wave[:16_000])
    assert not np.allclose(
        watermarker.push(clip.wave[16_000:]), mark(clip.wave[16_000:], clip.rate), atol=1e-4
    )


def test_the_mark_survives_mp3_and_telephony(clip: Clip) -> None:
    marked = mark(clip.wave, clip.rate)
    file = io.BytesIO()
    soundfile.write(file, marked, clip.rate, format="MP3")
    file.seek(0)
    for wave, rate in [
        soundfile.read(file, dtype="float32"),
        (resample(marked, clip.rate, 8_000), 8_000),
        (marked[8_000:40_000], clip.rate),
        (0.25 * marked, clip.rate),
    ]:
        score = detect(wave, rate)
        assert score is not None and score > 0.95


def test_silence_and_short_clips() -> None:
    silence = np.zeros(16_000, np.float32)
    assert np.array_equal(mark(silence, 16_000), silence)
    assert detect(silence, 16_000) is None
    assert detect(silence[:0], 16_000) is None
    short = np.full(100, 0.1, np.float32)
    assert np.array_equal(mark(short, 16_000), short)
    assert detect(short, 16_000) is None
    assert len(mark(silence[:0], 16_000)) == 0


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    networks.cache_clear()
    monkeypatch.setattr(watermark, "find_spec", lambda _: None)
    with pytest.raises(WatermarkUnavailable, match="pip install --no-deps resemble-perth"):
        networks()
