"""Audio formats of the server: whole files, streams of unknown length, and speaking speed.

All audio carries a statement that it is synthetic (:func:`tts_assets.core.audio.statement`): files
have it in a comment, responses also in a header, because raw PCM has no comment. With keys, whole
files also get a signed manifest. This module also checks that the recorded people still consent.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import av.error
import av.filter
import numpy as np
import soxr

from tts_assets.core.artifacts import Promoted, readable
from tts_assets.core.audio import statement, write_speech
from tts_assets.provenance import check_model
from tts_assets.provenance.manifest import Origin, Signature, keys_of_environment
from tts_assets.serving.config import ServingCard
from tts_assets.serving.pieces import Wave

PROVENANCE_HEADER = "X-Provenance"
Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
StreamFormat = Literal["mp3", "aac", "wav", "pcm"]
STREAM_FORMATS: tuple[StreamFormat, ...] = get_args(StreamFormat)
MEDIA_TYPES: dict[Format, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
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


def signature(folder: Path, card: ServingCard) -> Signature | None:
    """What is signed about speech of the serving model in ``folder``; None without keys.

    Raises :class:`ConfigError` for unusable keys (``provenance/manifest.py``).
    """
    if (keys := keys_of_environment()) is None:
        return None
    handle = readable(folder.resolve())
    content = handle.facts.model if isinstance(handle, Promoted) else handle and handle.content
    origin = Origin(model=f"serving/{card.recipe}", content=content or "", consents=card.consents)
    return Signature(origin, keys)


def require_consents(card: ServingCard, folder: Path) -> None:
    """Raise :class:`ConsentError` if a consent has ended since the model was published.

    ``folder`` is that of the model, which names the storage with the withdrawn consents.
    """
    check_model(folder, card.consents, f"{card.recipe} may not be used for synthesis")


def provenance_header(comment: str) -> dict[str, str]:
    """The statement as an HTTP header, in ASCII."""
    return {PROVENANCE_HEADER: comment.encode("ascii", "backslashreplace").decode()}


def encode(wave: Wave, rate: int, name: Format, comment: str) -> bytes:
    """Encode a whole waveform, float32 of shape (samples,) at ``rate`` Hz.

    pcm is resampled to 24 kHz and has no place for ``comment``.
    """
    if name == "pcm":
        return pcm16(soxr.resample(wave, rate, PCM_RATE).astype(np.float32))
    if name == "aac":
        encoder = StreamEncoder(rate, name, comment)
        return encoder.push(wave) + encoder.finish()
    container, subtype = CONTAINERS[name]
    buffer = io.BytesIO()
    write_speech(buffer, wave, rate, comment, container, subtype)
    return buffer.getvalue()


def pcm16(wave: Wave) -> bytes:
    """Signed 16-bit little-endian samples. Values beyond [-1, 1] are clipped."""
    return (wave.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


class StreamEncoder:
    """Encodes chunks at ``rate`` Hz: wav of unknown length, mp3, aac (ADTS), or pcm at 24 kHz."""

    def __init__(self, rate: int, name: StreamFormat, comment: str) -> None:
        self.head = wav_header(rate, comment) if name == "wav" else b""
        self.resampler = soxr.ResampleStream(rate, PCM_RATE, 1) if name == "pcm" else None
        self.ffmpeg = FfmpegEncoder(rate, name, comment) if name in FFMPEG_FORMATS else None

    def push(self, wave: Wave) -> bytes:
        """Encode a chunk of float32 samples. The first result starts with the header."""
        if self.ffmpeg is not None:
            return self.ffmpeg.push(wave)
        head, self.head = self.head, b""
        if self.resampler is not None:
            wave = self.resampler.resample_chunk(wave)
        return head + pcm16(wave)

    def finish(self) -> bytes:
        """The samples that remain in the encoder."""
        if self.ffmpeg is not None:
            return self.ffmpeg.finish()
        if self.resampler is None:
            return b""
        return pcm16(self.resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))


# Container and codec of FFmpeg, and options. The comment is in an ID3v2 tag.
FFMPEG_FORMATS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp3": ("mp3", "libmp3lame", {"write_xing": "0"}),
    "aac": ("adts", "aac", {"write_id3v2": "1"}),
}
BIT_RATE = 96_000  # bits per second, mono


class FfmpegEncoder:
    """Encodes chunks of mono float32 at ``rate`` Hz with FFmpeg."""

    def __init__(self, rate: int, name: str, comment: str) -> None:
        container, codec, options = FFMPEG_FORMATS[name]
        self.rate, self.output = rate, _Output()
        self.container = av.open(self.output, "w", format=container, options=options)
        self.container.metadata["comment"] = comment
        stream: Any = self.container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = BIT_RATE
        self.stream = stream
        self.samples = 0

    def push(self, wave: Wave) -> bytes:
        """Encode a chunk of shape (samples,); the bytes that are complete."""
        if len(wave):
            frame = audio_frame(wave, self.rate, self.samples)
            self.samples += len(wave)
            self.container.mux(self.stream.encode(frame))
        return self.output.take()

    def finish(self) -> bytes:
        """The bytes of the last frames."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.output.take()


class _Output:
    """A target for FFmpeg that cannot seek: it has only ``write``."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self.parts = self.parts, []
        return b"".join(parts)


def audio_frame(wave: Wave, rate: int, start: int) -> av.AudioFrame:
    """A frame of FFmpeg from mono float32 samples; ``start`` is the index of the first one."""
    samples = np.ascontiguousarray(wave.clip(-1, 1)[None], dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
    frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame


class Tempo:
    """Changes the speed of speech without its pitch (FFmpeg's ``atempo``, WSOLA).

    ``speed`` is 0.25 to 4. A filter is used for each factor between 0.5 and 2, because ``atempo``
    drops samples above 2.
    """

    def __init__(self, rate: int, speed: float) -> None:
        self.rate, self.samples = rate, 0
        self.graph: av.filter.Graph | None = None
        if speed == 1:
            return
        factors = [speed] if 0.5 <= speed <= 2 else [speed**0.5] * 2
        self.graph = av.filter.Graph()
        self.source: Any = self.graph.add_abuffer(
            format="flt", sample_rate=rate, layout="mono", time_base=Fraction(1, rate)
        )
        filters = [self.source, *(self.graph.add("atempo", str(factor)) for factor in factors)]
        filters.append(self.graph.add("abuffersink"))
        self.graph.link_nodes(*filters).configure()
        self.sink: Any = filters[-1]

    def push(self, wave: Wave) -> Wave:
        """Add float32 samples; return those that are final."""
        if self.graph is None or not len(wave):
            return wave
        self.source.push(audio_frame(wave, self.rate, self.samples))
        self.samples += len(wave)
        return self._pull()

    def finish(self) -> Wave:
        """The remaining samples."""
        if self.graph is None or not self.samples:
            return np.zeros(0, dtype=np.float32)
        self.source.push(None)
        return self._pull()

    def apply(self, wave: Wave) -> Wave:
        """The whole waveform at the other speed."""
        return np.concatenate([self.push(wave), self.finish()])

    def _pull(self) -> Wave:
        frames = [frame.to_ndarray().reshape(-1) for frame in self._frames()]
        return np.concatenate([np.zeros(0, dtype=np.float32), *frames])

    def _frames(self) -> Iterator[av.AudioFrame]:
        while True:
            try:
                yield self.sink.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return


def wav_comment(comment: str) -> bytes:
    """The LIST/INFO/ICMT chunk of a RIFF file with this comment."""
    text = comment.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    return struct.pack("<4sI4s4sI", b"LIST", 12 + len(text), b"INFO", b"ICMT", len(text)) + text


def wav_header(rate: int, comment: str) -> bytes:
    """The header of a 16-bit mono wav file whose length is unknown."""
    tags = wav_comment(comment)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    data = struct.pack("<4sI", b"data", UNKNOWN_SIZE)
    size = UNKNOWN_SIZE + 36 + len(tags)
    return struct.pack("<4sI4s", b"RIFF", size, b"WAVE") + form + tags + data
