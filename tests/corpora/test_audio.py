"""Reading audio: formats, rates, channels, and everything that is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tts_assets.corpora.audio import BrokenAudio, read_clip, read_wave


@pytest.fixture
def speech(clips: Path) -> np.ndarray:
    """A real clip of more than two seconds, mono at 16 kHz."""
    waves = [read_clip(path) for path in sorted(clips.rglob("*.g722"))]
    return next(clip.wave for clip in waves if clip.seconds > 2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.flac", {}),
        ("a.ogg", {}),
        ("a.mp3", {}),
        ("float.wav", {"subtype": "FLOAT"}),
    ],
)
def test_formats_read_alike(tmp_path: Path, speech: np.ndarray, name: str, options: dict) -> None:
    soundfile.write(tmp_path / name, speech, 16_000, **options)
    clip = read_clip(tmp_path / name)
    assert (clip.rate, clip.channels) == (16_000, 1)
    length = min(len(clip.wave), len(speech))
    assert abs(len(clip.wave) - len(speech)) < 2500  # mp3 pads
    if name.endswith((".wav", ".flac")):
        np.testing.assert_allclose(clip.wave[:length], speech[:length], atol=1e-4)


def test_g722_has_the_duration_that_its_bytes_say(clips: Path) -> None:
    for path in clips.rglob("*.g722"):
        clip = read_clip(path)
        assert clip.rate == 16_000
        assert clip.seconds == pytest.approx(path.stat().st_size / 8000, abs=0.01)
        assert 0.01 < np.abs(clip.wave).max() <= 1


def test_channels_are_mixed_and_rates_converted(tmp_path: Path, speech: np.ndarray) -> None:
    eight = np.stack([speech] * 8, axis=1)
    soundfile.write(tmp_path / "eight.wav", eight, 16_000, subtype="FLOAT")
    clip = read_clip(tmp_path / "eight.wav")
    assert clip.channels == 8
    np.testing.assert_allclose(clip.wave, speech, atol=1e-5)
    soundfile.write(tmp_path / "high.wav", np.repeat(speech, 3), 48_000)
    low = read_wave(tmp_path / "high.wav", 16_000)
    assert len(low) == pytest.approx(len(speech), abs=2)


def _nan(path: Path, speech: np.ndarray) -> None:
    bad = speech.copy()
    bad[100] = np.nan
    soundfile.write(path, bad, 16_000, subtype="FLOAT")


def _truncated(path: Path, speech: np.ndarray) -> None:
    soundfile.write(path, speech, 16_000, format="FLAC")
    path.write_bytes(path.read_bytes()[:-2000])


BROKEN = {
    "empty file": lambda path, speech: path.write_bytes(b""),
    "not readable as audio": lambda path, speech: path.write_text("these are words\n" * 50),
    "not a number": _nan,
    "no samples": lambda path, speech: soundfile.write(path, speech[:0], 16_000),
    "no such file": lambda path, speech: None,
}


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_audio_is_named(tmp_path: Path, speech: np.ndarray, reason: str) -> None:
    path = tmp_path / "broken.wav"
    BROKEN[reason](path, speech)
    with pytest.raises(BrokenAudio) as caught:
        read_clip(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)


def test_a_truncated_flac_is_not_taken_for_a_short_clip(tmp_path: Path, speech: np.ndarray) -> None:
    path = tmp_path / "cut.flac"
    _truncated(path, speech)
    with pytest.raises(BrokenAudio):
        read_clip(path)
