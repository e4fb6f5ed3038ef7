"""Reading audio: formats, rates, channels, and everything that is broken."""

from __future__ import annotations

from pathlib import Path

import av
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
        ("a.aiff", {}),
        ("float.wav", {"subtype": "FLOAT"}),
    ],
)
def test_formats_read_alike(tmp_path: Path, speech: np.ndarray, name: str, options: dict) -> None:
    soundfile.write(tmp_path / name, speech, 16_000, **options)
    clip = read_clip(tmp_path / name)
    assert (clip.rate, clip.channels) == (16_000, 1)
    length = min(len(clip.wave), len(speech))
    assert abs(len(clip.wave) - len(speech)) < 2500  # mp3 pads
    if not name.endswith((".ogg", ".mp3")):
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


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff", "a.au"])
def test_a_file_cut_short_is_not_taken_for_a_short_clip(
    tmp_path: Path, speech: np.ndarray, name: str
) -> None:
    path = tmp_path / name
    opus = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
    soundfile.write(path, speech, 16_000, **opus)
    assert read_clip(path).seconds == pytest.approx(len(speech) / 16_000, abs=0.1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(BrokenAudio) as caught:
        read_clip(path)
    flac = "not readable as audio"  # its decoder loses the frame
    assert caught.value.reason == (flac if name == "a.flac" else "truncated")


def test_a_wav_that_was_written_to_a_pipe_has_no_true_length_and_is_whole(
    tmp_path: Path, speech: np.ndarray
) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, speech, 16_000)
    data = path.read_bytes()
    size = data.index(b"data") + 4
    path.write_bytes(data[:size] + b"\xff" * 4 + data[size + 4 :])
    assert len(read_clip(path).wave) == len(speech)


def test_what_libsndfile_cannot_read_is_left_to_ffmpeg(tmp_path: Path, speech: np.ndarray) -> None:
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(speech[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    clip = read_clip(path)
    assert clip.rate == 16_000
    lag = np.correlate(clip.wave[:16_000], speech[:8_000], "valid").argmax()  # AAC primes
    assert np.corrcoef(clip.wave[lag : lag + 8_000], speech[:8_000])[0, 1] > 0.9
