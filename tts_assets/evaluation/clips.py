"""Syntheses as files, and inside of pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
import soundfile

from tts_assets.audio import Wave, resample
from tts_assets.provenance import write_speech

OPUS_RATE = 48_000  # of Hz that Opus knows, the one that holds every codec's band
OPUS_BITS = 40_000  # a second: speech of 24 kHz without audible loss
PAGE_BYTES = 10_000_000  # of audio in a page, which must stay readable in a browser
ENCODED = 4 / 3  # bytes of base64 a byte


def write_flac(path: Path, wave: Wave, rate: int, comment: str = "") -> None:
    """16-bit FLAC: lossless from here on, half the size of WAV, played by every browser."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_speech(path, np.clip(wave, -1.0, 1.0), rate, comment, "FLAC")


def read_flac(path: Path) -> tuple[Wave, int]:
    wave, rate = soundfile.read(path, dtype="float32")
    return wave, rate


class Embedder:
    """Files as data URIs of one page: FLAC as they are while all fit, else Opus.

    Where Opus does not fit either, those that come last get none: ask for the worst first.
    ``comment`` takes the place of the files' own, which name the model.
    """

    def __init__(self, paths: Iterable[Path], comment: str | None = None) -> None:
        self.comment = comment
        self.lossless = sum(path.stat().st_size for path in paths) * ENCODED <= PAGE_BYTES
        self.left = PAGE_BYTES

    def __call__(self, path: Path) -> str | None:
        """The data URI of a FLAC file; None if the page is full."""
        if self.lossless:
            kind = "audio/flac"
            data = path.read_bytes() if self.comment is None else commented(path, self.comment)
        else:
            said = comment_of(path) if self.comment is None else self.comment
            kind, data = "audio/ogg", opus(*read_flac(path), said)
        uri = data_uri(data, kind)
        if len(uri) > self.left:
            self.left = 0
            return None
        self.left -= len(uri)
        return uri


def comment_of(path: Path) -> str:
    with soundfile.SoundFile(path) as file:
        comment: str = file.comment
    return comment


def commented(path: Path, comment: str) -> bytes:
    """The same 16-bit samples as FLAC with another comment, and nothing else."""
    samples, rate = soundfile.read(path, dtype="int16")
    buffer = io.BytesIO()
    write_speech(buffer, samples, rate, comment, "FLAC")
    return buffer.getvalue()


def opus(wave: Wave, rate: int, comment: str = "") -> bytes:
    """Ogg Opus, mono; the same samples give the same bytes (libsndfile draws a serial number)."""
    samples = np.clip(resample(wave, rate, OPUS_RATE), -1.0, 1.0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=OPUS_RATE, layout="mono")
        stream.bit_rate = OPUS_BITS
        if comment:
            stream.metadata["comment"] = comment
        frame = av.AudioFrame.from_ndarray(
            np.round(samples * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = OPUS_RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
