"""Reading audio files: anything soundfile or FFmpeg (PyAV) reads, as mono float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]
# libsndfile does not know these; G.722 has no header, so FFmpeg must be told.
FFMPEG_FORMATS = {".g722": "g722", ".m4a": None, ".aac": None, ".opus": None, ".webm": None}


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
    decode = _read_ffmpeg if path.suffix.lower() in FFMPEG_FORMATS else _read_sndfile
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
            announced = file.frames
            frames = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise BrokenAudio(path, "not readable as audio", str(error)) from None
    if len(frames) < announced:
        raise BrokenAudio(path, "truncated", f"{len(frames)} of {announced} frames")
    return frames, rate


def _read_ffmpeg(path: Path) -> tuple[Wave, int]:
    """Frames (samples, channels) and rate."""
    try:
        with av.open(str(path), format=FFMPEG_FORMATS[path.suffix.lower()]) as container:
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
        raise BrokenAudio(path, "not readable as audio", str(error)) from None
    if not blocks:
        raise BrokenAudio(path, "no samples")
    return np.concatenate(blocks, axis=1).T, rate
