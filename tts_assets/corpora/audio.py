"""Reading audio files: anything soundfile or FFmpeg (PyAV) reads, as mono float32.

A file that was cut short is refused where its format tells, because the words of its lost end are
still in its text: by the length in the header (wav, aiff, au, flac, mp3) or by the mark on the
last page (ogg). Formats without either (g722, aac) cannot tell.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]
SNDFILE_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf"}
HEADERLESS = {".g722": "g722"}  # FFmpeg must be told what these are
# libsndfile's log of a header that announces more bytes than the file has.
ANNOUNCED = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.M)
STREAMED = 0x7FFFF000  # sizes from here on mean "unknown": written to a pipe by sox or FFmpeg
OGG_PAGE = 65_307  # bytes, the longest possible
OGG_LAST_PAGE = 0x04  # bit of the sixth byte of a page


class BrokenAudio(ValueError):
    """A file without usable audio; ``reason`` is short and countable."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        super().__init__(f"{path}: {reason}{f' ({detail})' if detail else ''}")
        self.path = path
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Clip:
    """``wave`` mono float32 in [-1, 1], shape (samples,); ``rate`` in Hz; channels of the file."""

    wave: Wave
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate


def read_clip(path: Path) -> Clip:
    """Decode a whole file and mix it to mono. Raises :class:`BrokenAudio`."""
    if not path.is_file():
        raise BrokenAudio(path, "no such file")
    if path.stat().st_size == 0:
        raise BrokenAudio(path, "empty file")
    decode = _read_sndfile if path.suffix.lower() in SNDFILE_SUFFIXES else _read_ffmpeg
    frames, rate = decode(path)
    if frames.size == 0:
        raise BrokenAudio(path, "no samples")
    if not math.isfinite(float(frames.sum(dtype=np.float64))):
        raise BrokenAudio(path, "not a number", "NaN or infinite samples")
    return Clip(frames.mean(axis=1, dtype=np.float32), rate, frames.shape[1])


def read_wave(path: Path, rate: int) -> Wave:
    """Mono float32 at ``rate`` Hz. Raises :class:`BrokenAudio`."""
    clip = read_clip(path)
    return clip.wave if clip.rate == rate else resample(clip.wave, clip.rate, rate)


def resample(wave: Wave, rate: int, new_rate: int) -> Wave:
    """Band-limited resampling (soxr, high quality)."""
    return soxr.resample(wave, rate, new_rate, quality="HQ").astype(np.float32, copy=False)


def _read_sndfile(path: Path) -> tuple[Wave, int]:
    """Frames (samples, channels) and rate."""
    try:
        with soundfile.SoundFile(path) as file:
            _refuse_cut(path, file)
            announced = file.frames
            frames = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        detail = f"is it {path.suffix.lower()}? {error.error_string}"
        raise BrokenAudio(path, "not readable as audio", detail) from None
    if len(frames) < announced:
        raise BrokenAudio(path, "truncated", f"{len(frames)} of {announced} frames")
    return frames, rate


def _refuse_cut(path: Path, file: soundfile.SoundFile) -> None:
    """Raise where libsndfile would read what is left of a file without a word."""
    for size, present in ANNOUNCED.findall(file.extra_info):
        if int(present) < int(size) < STREAMED:
            raise BrokenAudio(path, "truncated", f"{present} of {size} bytes")
    if file.format == "OGG" and not _ends_with_last_page(path):
        raise BrokenAudio(path, "truncated", "its last Ogg page is not marked as the end")


def _ends_with_last_page(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - OGG_PAGE), os.SEEK_SET)
        tail = stream.read()
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & OGG_LAST_PAGE)


def _read_ffmpeg(path: Path) -> tuple[Wave, int]:
    """Frames (samples, channels) and rate."""
    try:
        with av.open(str(path), format=HEADERLESS.get(path.suffix.lower())) as container:
            if not container.streams.audio:
                raise BrokenAudio(path, "no audio stream")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            blocks = [
                block.to_ndarray()
                for frame in container.decode(stream)
                for block in resampler.resample(frame)
            ]
            rate = stream.rate
    except av.error.FFmpegError as error:
        detail = f"is it {path.suffix.lower()}? {error.strerror}"
        raise BrokenAudio(path, "not readable as audio", detail) from None
    if not blocks:
        raise BrokenAudio(path, "no samples")
    return np.concatenate(blocks, axis=1, dtype=np.float32).T, rate
