"""Audio formats that are sent over a network: whole files, and streams without a length."""

from __future__ import annotations

import io
import struct
from typing import Literal, get_args

import numpy as np
import soxr
from numpy.typing import NDArray

from tts_assets.provenance import wav_comment, write_speech

Wave = NDArray[np.float32]
Format = Literal["mp3", "opus", "flac", "wav", "pcm"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
CONTAINERS = {
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "flac": ("FLAC", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
}
PCM_RATE = 24_000  # of OpenAI's pcm, which names no rate: 16-bit little-endian mono
UNKNOWN = 0x7FFFF000  # the size that a header names when the end is not known


def encode(wave: Wave, rate: int, name: Format, comment: str) -> bytes:
    """A whole waveform, mono float32, with a comment; pcm has none and is resampled to 24 kHz."""
    if name == "pcm":
        return pcm16(soxr.resample(wave, rate, PCM_RATE).astype(np.float32))
    container, subtype = CONTAINERS[name]
    buffer = io.BytesIO()
    write_speech(buffer, wave, rate, comment, container, subtype)
    return buffer.getvalue()


def pcm16(wave: Wave) -> bytes:
    """Signed 16-bit little-endian samples."""
    return (wave.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


class StreamEncoder:
    """pcm at 24 kHz, or wav of unknown length at the model's rate, as the waveform comes."""

    def __init__(self, rate: int, name: Literal["wav", "pcm"], comment: str) -> None:
        self.head = wav_header(rate, comment) if name == "wav" else b""
        self.resampler = soxr.ResampleStream(rate, PCM_RATE, 1) if name == "pcm" else None

    def push(self, wave: Wave) -> bytes:
        head, self.head = self.head, b""
        if self.resampler is not None:
            wave = self.resampler.resample_chunk(wave)
        return head + pcm16(wave)

    def finish(self) -> bytes:
        """What the resampler still holds."""
        if self.resampler is None:
            return b""
        return pcm16(self.resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))


def wav_header(rate: int, comment: str) -> bytes:
    """Of 16-bit mono whose length is not known."""
    tags = wav_comment(comment)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    data = struct.pack("<4sI", b"data", UNKNOWN)
    size = UNKNOWN + 36 + len(tags)
    return struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + form + tags + data
