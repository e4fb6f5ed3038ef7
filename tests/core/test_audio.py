"""Reading audio: formats, rates, channels and broken files."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from tts_assets.core.audio import BrokenAudio, measure, read_clip, read_wave, resample


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
def test_all_formats_give_the_same_samples(
    tmp_path: Path, speech: np.ndarray, name: str, options: dict
) -> None:
    soundfile.write(tmp_path / name, speech, 16_000, **options)
    clip = read_clip(tmp_path / name)
    assert (clip.rate, clip.channels) == (16_000, 1)
    length = min(len(clip.wave), len(speech))
    assert abs(len(clip.wave) - len(speech)) < 2500  # mp3 pads
    if not name.endswith((".ogg", ".mp3")):
        np.testing.assert_allclose(clip.wave[:length], speech[:length], atol=1e-4)


def test_the_duration_of_g722_follows_from_its_size(clips: Path) -> None:
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
def test_broken_audio_is_an_error_with_a_reason(
    tmp_path: Path, speech: np.ndarray, reason: str
) -> None:
    path = tmp_path / "broken.wav"
    BROKEN[reason](path, speech)
    with pytest.raises(BrokenAudio) as caught:
        read_clip(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff", "a.au"])
def test_a_truncated_file_is_rejected(tmp_path: Path, speech: np.ndarray, name: str) -> None:
    path = tmp_path / name
    opus = {"format": "OGG", "subtype": "OPUS"} if name == "a.opus" else {}
    soundfile.write(path, speech, 16_000, **opus)
    assert read_clip(path).seconds == pytest.approx(len(speech) / 16_000, abs=0.1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(BrokenAudio) as caught:
        read_clip(path)
    flac = "not readable as audio"  # its decoder loses the frame
    assert caught.value.reason == (flac if name == "a.flac" else "truncated")


def test_a_wav_written_to_a_pipe_is_accepted_without_its_length(
    tmp_path: Path, speech: np.ndarray
) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, speech, 16_000)
    data = path.read_bytes()
    size = data.index(b"data") + 4
    path.write_bytes(data[:size] + b"\xff" * 4 + data[size + 4 :])
    assert len(read_clip(path).wave) == len(speech)


def encode(path: Path, frames: np.ndarray, rate: int) -> None:
    """Frames (samples, channels) in the format of the suffix."""
    if path.suffix not in (".m4a", ".g722"):
        options = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
        soundfile.write(path, frames, rate, **options)
        return
    codec, sample = {".m4a": ("aac", "fltp"), ".g722": ("g722", "s16")}[path.suffix]
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[frames.shape[1]]
    planes = frames.T if sample == "fltp" else (frames.T * 32767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 320_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), sample, layout)
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])


FORMATS = [
    *[("wav", rate, channels) for rate in (8000, 22_050, 96_000, 192_000) for channels in (1, 8)],
    *[("flac", rate, channels) for rate in (8000, 44_100, 192_000) for channels in (1, 2, 8)],
    *[("ogg", rate, channels) for rate in (8000, 24_000, 96_000) for channels in (1, 6)],
    *[("opus", rate, channels) for rate in (8000, 48_000) for channels in (1, 2)],
    *[("mp3", rate, channels) for rate in (8000, 16_000, 48_000) for channels in (1, 2)],
    *[("m4a", rate, channels) for rate in (16_000, 44_100, 96_000) for channels in (1, 2, 6)],
    ("g722", 16_000, 1),
]


@pytest.mark.parametrize(("suffix", "rate", "channels"), FORMATS)
def test_every_format_rate_and_channel_count(
    tmp_path: Path, speech: np.ndarray, suffix: str, rate: int, channels: int
) -> None:
    wave = resample(speech[:32_000], 16_000, rate)
    path = tmp_path / f"a.{suffix}"
    encode(path, np.stack([wave] * channels, axis=1), rate)
    clip = read_clip(path)
    assert (clip.rate, clip.channels) == (rate, channels)
    assert clip.seconds == pytest.approx(2, abs=0.15)  # lossy encoders pad
    size = measure(path)
    assert (size.frames, size.rate, size.channels) == (len(clip.wave), rate, channels)
    read, given = (resample(each, rate, 8000) for each in (clip.wave, wave))
    lag = np.correlate(read, given[1000:13_000], "valid").argmax()
    assert np.corrcoef(read[lag : lag + 12_000], given[1000:13_000])[0, 1] > 0.97
