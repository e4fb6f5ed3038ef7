"""Audio by other encoders than libsndfile, damaged headers, and containers by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.encoding import encode, mp3, speech_like
from tts_assets.core.audio import BrokenAudio, blocks, measure, read_clip, read_upload
from tts_assets.core.containers import container_of, read_mp3

RATE = 16_000


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
@pytest.mark.parametrize("vbr", ["", "2", "9"])
def test_mp3_without_a_length_header_is_whole(tmp_path: Path, rate: int, vbr: str) -> None:
    wave = speech_like(rate)
    mp3(tmp_path / "a.mp3", wave, rate, xing=False, vbr=vbr)
    assert read_mp3(tmp_path / "a.mp3").samples is None
    assert 0 <= measure(tmp_path / "a.mp3").frames - len(wave) < 4096
    upload = read_upload(tmp_path / "a.mp3", rate, 30)
    assert len(upload) == measure(tmp_path / "a.mp3").frames


def test_mp3_with_a_length_header_is_exact(tmp_path: Path) -> None:
    wave = speech_like()
    mp3(tmp_path / "a.mp3", wave, RATE, xing=True)
    assert measure(tmp_path / "a.mp3").frames == len(wave)


@pytest.mark.parametrize("xing", [True, False])
def test_truncated_mp3_is_refused(tmp_path: Path, xing: bool) -> None:
    mp3(tmp_path / "a.mp3", speech_like(), RATE, xing=xing)
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[: len(data) * 2 // 3 + 5])
    with pytest.raises(BrokenAudio, match="truncated"):
        measure(tmp_path / "a.mp3")


@pytest.mark.parametrize("xing", [True, False])
def test_concatenated_mp3_files_are_read_to_the_end(tmp_path: Path, xing: bool) -> None:
    wave = speech_like()
    mp3(tmp_path / "a.mp3", wave, RATE, xing=xing)
    (tmp_path / "b.mp3").write_bytes((tmp_path / "a.mp3").read_bytes() * 2)
    assert measure(tmp_path / "b.mp3").frames >= 2 * len(wave)


@pytest.mark.parametrize("xing", [True, False])
@pytest.mark.parametrize("tail", [bytes(3000), b"TAG" + b"t" * 125, b"APETAGEX" + b"x" * 300])
def test_what_follows_the_last_frame_of_an_mp3_is_ignored(
    tmp_path: Path, tail: bytes, xing: bool
) -> None:
    mp3(tmp_path / "a.mp3", speech_like(), RATE, xing=xing)
    frames = measure(tmp_path / "a.mp3").frames
    (tmp_path / "b.mp3").write_bytes((tmp_path / "a.mp3").read_bytes() + tail)
    assert measure(tmp_path / "b.mp3").frames == frames


@pytest.mark.parametrize(
    ("name", "codec", "form", "rate"),
    [
        ("a.webm", "libopus", "webm", 48_000),
        ("a.mp3", "aac", "ipod", 16_000),  # an m4a under another name
        ("a.wav", "aac", "adts", 16_000),
        ("a.flac", "libmp3lame", "mp3", 16_000),
    ],
)
def test_the_content_decides_about_the_container(
    tmp_path: Path, name: str, codec: str, form: str, rate: int
) -> None:
    wave = speech_like(rate)
    encode(tmp_path / name, wave, rate, codec, form)
    assert abs(measure(tmp_path / name).frames - len(wave)) < 4096


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_the_suffix_of_g722_does_not_hide_another_format(tmp_path: Path, form: str) -> None:
    wave = speech_like()
    soundfile.write(tmp_path / "a.g722", wave, RATE, format=form)
    assert abs(measure(tmp_path / "a.g722").frames - len(wave)) < 100
    encode(tmp_path / "b.g722", wave, RATE, "g722", "g722")
    assert abs(measure(tmp_path / "b.g722").frames - len(wave)) < 100


@pytest.mark.parametrize(("codec", "form"), [("flac", "flac"), ("aac", "adts")])
def test_id3_tags_in_front_of_other_formats(tmp_path: Path, codec: str, form: str) -> None:
    wave = speech_like()
    encode(tmp_path / "a", wave, RATE, codec, form)
    tag = b"ID3\x04" + bytes(4) + b"\x40\0" + bytes(8192)  # longer than what is searched
    (tmp_path / "a").write_bytes(tag + (tmp_path / "a").read_bytes())
    assert abs(measure(tmp_path / "a").frames - len(wave)) < 4096


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_files_are_read_to_the_end(tmp_path: Path, subtype: str) -> None:
    path, wave = tmp_path / "a.ogg", speech_like()
    soundfile.write(path, wave, RATE, subtype)
    one = read_clip(path).wave
    path.write_bytes(path.read_bytes() * 3)
    whole = read_clip(path).wave
    assert measure(path).frames == len(whole) == len(read_upload(path, RATE, 30)) == 3 * len(one)
    later = np.concatenate([block.frames[:, 0] for block in blocks(path, 50_000)])
    assert np.array_equal(later, whole[50_000:])
    part = path.read_bytes()
    soundfile.write(path, wave, 2 * RATE, "VORBIS")
    path.write_bytes(part + path.read_bytes())
    with pytest.raises(BrokenAudio, match="its parts differ in format"):
        measure(path)


@pytest.mark.parametrize("playlist", ["#EXTM3U\n{}\n", "ffconcat version 1.0\nfile {}\n"])
@pytest.mark.parametrize("name", ["a.m4a", "a.mp4", "a.webm", "a.wav", "a.g722"])
def test_playlists_do_not_open_other_files(tmp_path: Path, playlist: str, name: str) -> None:
    soundfile.write(tmp_path / "other.wav", speech_like(), RATE)
    (tmp_path / name).write_text(playlist.format(tmp_path / "other.wav"))
    assert container_of(tmp_path / name) is None
    with pytest.raises(BrokenAudio, match="not readable as audio"):
        measure(tmp_path / name)


def wav_with_size(path: Path, wave: np.ndarray, change: int | None) -> None:
    """A wav whose data size is off by ``change`` bytes; None: 0, as of a killed recorder."""
    soundfile.write(path, wave, RATE, "PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    size = 0 if change is None else int.from_bytes(data[at : at + 4], "little") + change
    data[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("change", [1, 18, 700, None])
def test_wav_headers_that_are_slightly_off_are_tolerated(
    tmp_path: Path, change: int | None
) -> None:
    wave = speech_like()
    wav_with_size(tmp_path / "a.wav", wave, change)
    assert measure(tmp_path / "a.wav").frames == len(wave)


def test_a_wav_without_a_length_behind_other_chunks(tmp_path: Path) -> None:
    """Recorders write long descriptions (bext, iXML) in front of the samples."""
    wave = speech_like()
    wav_with_size(tmp_path / "a.wav", wave, None)
    data = (tmp_path / "a.wav").read_bytes()
    chunk = b"iXML" + (8001).to_bytes(4, "little") + b"data" * 2000 + b"x\0"
    (tmp_path / "a.wav").write_bytes(data[:12] + chunk + data[12:])
    assert measure(tmp_path / "a.wav").frames == len(wave)


def test_a_wav_header_far_off_is_truncated(tmp_path: Path) -> None:
    wav_with_size(tmp_path / "a.wav", speech_like(), 2000)
    with pytest.raises(BrokenAudio, match="truncated"):
        measure(tmp_path / "a.wav")


def test_gsm_in_wav(tmp_path: Path) -> None:
    wave = speech_like(8000)
    soundfile.write(tmp_path / "a.wav", wave, 8000, "GSM610")
    assert abs(measure(tmp_path / "a.wav").frames - len(wave)) <= 320
    later = np.concatenate([block.frames for block in blocks(tmp_path / "a.wav", 9000)])
    whole = read_clip(tmp_path / "a.wav").wave
    assert np.abs(later[:, 0] - whole[9000:]).max() < 1e-3


def ogg_without_end_mark(path: Path) -> None:
    """Clears the end-of-stream flag of the last page; its checksum is set accordingly."""
    data = bytearray(path.read_bytes())
    page = data.rfind(b"OggS")
    data[page + 5] &= ~0x04
    data[page + 22 : page + 26] = bytes(4)
    crc = 0
    for byte in data[page:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    data[page + 22 : page + 26] = crc.to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize("encoder", ["libopus", "libsndfile"])
def test_ogg_without_an_end_mark_is_whole(tmp_path: Path, encoder: str) -> None:
    rate = 48_000
    path = tmp_path / "a.ogg"
    if encoder == "libopus":
        encode(path, speech_like(rate), rate, "libopus", "ogg")
    else:
        soundfile.write(path, speech_like(rate), rate)
    frames = measure(path).frames
    ogg_without_end_mark(path)
    assert abs(measure(path).frames - frames) < 2048
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BrokenAudio, match="truncated"):
        measure(path)


SIGNALS = {
    "int16 scale": ("another scale", lambda wave: wave * 32768),
    "zeros": ("no signal", lambda wave: wave * 0),
    "an offset alone": ("no signal", lambda wave: wave * 0 + 0.3),
    "60 dB too low": ("no signal", lambda wave: wave * 1e-3),
}


@pytest.mark.parametrize("kind", SIGNALS)
def test_audio_without_a_usable_signal_is_refused(tmp_path: Path, kind: str) -> None:
    reason, change = SIGNALS[kind]
    soundfile.write(tmp_path / "a.wav", change(speech_like()), RATE, "FLOAT")
    for read in (measure, lambda path: read_upload(path, RATE, 30)):
        with pytest.raises(BrokenAudio) as refused:
            read(tmp_path / "a.wav")
        assert refused.value.reason == reason


def test_channels_that_cancel_are_refused_and_a_silent_one_is_not(tmp_path: Path) -> None:
    wave = speech_like()
    for name, other in (("a.wav", -0.99 * wave), ("b.wav", 0 * wave)):
        soundfile.write(tmp_path / name, np.column_stack([wave, other]), RATE)
    with pytest.raises(BrokenAudio, match="channels cancel"):
        measure(tmp_path / "a.wav")
    assert measure(tmp_path / "b.wav").channels == 2


def test_samples_above_full_scale_are_clipped_and_reported(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 8 * speech_like(), RATE, "FLOAT")
    assert measure(tmp_path / "a.wav").peak > 2
    assert np.abs(read_clip(tmp_path / "a.wav").wave).max() == 1.0
