"""Audio formats of the server: whole files, and streams of unknown length.

All audio carries a statement that it is synthetic (:func:`tts_assets.core.audio.statement`): files
have it in a comment, responses also in a header, because raw PCM has no comment. This module also
checks that the recorded people still consent.
"""

from __future__ import annotations

import io
import struct
from datetime import date
from typing import Literal, get_args

import numpy as np
import soxr

from tts_assets.core.audio import statement, wav_comment, write_speech
from tts_assets.corpora.config import check_consents
from tts_assets.serving.config import ServingCard
from tts_assets.serving.pieces import Wave

PROVENANCE_HEADER = "X-Provenance"
Format = Literal["mp3", "opus", "flac", "wav", "pcm"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
CONTAINERS = {  # as libsndfile names them
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "flac": ("FLAC", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
}
PCM_RATE = 24_000  # Hz, the fixed rate of OpenAI's pcm: 16-bit little-endian mono
UNKNOWN_SIZE = 0x7FFFF000  # bytes in the header of a wav stream


def provenance(card: ServingCard) -> str:
    """The statement in all audio of the model."""
    return statement(f"{card.stage}/{card.recipe}", card.consenting_people)


def require_consents(card: ServingCard) -> None:
    """Raise :class:`ConsentError` if a consent has ended since the model was published."""
    check_consents(card.consents, f"{card.recipe} may not be used for synthesis", date.today())


def provenance_header(comment: str) -> dict[str, str]:
    """The statement as an HTTP header, in ASCII."""
    return {PROVENANCE_HEADER: comment.encode("ascii", "backslashreplace").decode()}


def encode(wave: Wave, rate: int, name: Format, comment: str) -> bytes:
    """Encode a whole waveform, float32 of shape (samples,) at ``rate`` Hz.

    pcm is resampled to 24 kHz and has no place for ``comment``.
    """
    if name == "pcm":
        return pcm16(soxr.resample(wave, rate, PCM_RATE).astype(np.float32))
    container, subtype = CONTAINERS[name]
    buffer = io.BytesIO()
    write_speech(buffer, wave, rate, comment, container, subtype)
    return buffer.getvalue()


def pcm16(wave: Wave) -> bytes:
    """Signed 16-bit little-endian samples. Values beyond [-1, 1] are clipped."""
    return (wave.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


class StreamEncoder:
    """Encodes chunks: pcm at 24 kHz, or wav of unknown length at ``rate`` Hz."""

    def __init__(self, rate: int, name: Literal["wav", "pcm"], comment: str) -> None:
        self.head = wav_header(rate, comment) if name == "wav" else b""
        self.resampler = soxr.ResampleStream(rate, PCM_RATE, 1) if name == "pcm" else None

    def push(self, wave: Wave) -> bytes:
        """Encode a chunk of float32 samples. The first result starts with the header."""
        head, self.head = self.head, b""
        if self.resampler is not None:
            wave = self.resampler.resample_chunk(wave)
        return head + pcm16(wave)

    def finish(self) -> bytes:
        """The samples that remain in the resampler."""
        if self.resampler is None:
            return b""
        return pcm16(self.resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))


def wav_header(rate: int, comment: str) -> bytes:
    """The header of a 16-bit mono wav file whose length is unknown."""
    tags = wav_comment(comment)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    data = struct.pack("<4sI", b"data", UNKNOWN_SIZE)
    size = UNKNOWN_SIZE + 36 + len(tags)
    return struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + form + tags + data
