"""Reading audio files: anything soundfile or FFmpeg (PyAV) reads, as mono float32.

A file that was cut short is refused where its format tells, because the words of its lost end are
still in its text: by the length in the header (wav, aiff, au, flac, mp3) or by the mark on the
last page (ogg). Formats without either (g722, aac) cannot tell.

Audio that the pipeline cut or extracted itself: write-once files named by their SHA-256.

Recordings that lie on disk as one file an utterance are used where they lie. Audio inside a
Parquet file, or a part of a longer recording, becomes a file here, once for all versions of its
corpus: an index that changes in one row writes one file.

Synthesized speech says that it is: a comment in the metadata of every file that is written.

It names the model, whose voice it was trained on, and IPTC's term for media that were made by a
trained model (https://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia). It is
easily taken out; it is for those who are honest. Nothing in it depends on the time, so that the
same seed gives the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import av.error
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from tts_assets import __version__
from tts_assets.core.artifacts import written_aside

Wave = NDArray[np.float32]
SNDFILE_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf"}
# Of what strangers send, by content: FFmpeg would follow a playlist to whatever it names.
UPLOAD_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")  # as libsndfile calls them; Opus is OGG
UPLOAD_RATES = (8_000, 192_000)  # Hz; a header can claim 2 GHz, and seconds of that fill memory
HEADERLESS = {".g722": "g722"}  # FFmpeg must be told what these are
# libsndfile's log of a header that announces more bytes than the file has.
ANNOUNCED = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.M)
STREAMED = 0x7FFFF000  # sizes from here on mean "unknown": written to a pipe by sox or FFmpeg
BLOCK = 1 << 18  # frames: a clip is one block; an hour of 48 kHz stereo never more than 2 MB
OGG_PAGE = 65_307  # bytes, the longest possible
OGG_LAST_PAGE = 0x04  # bit of the sixth byte of a page


REMEDIES = {
    "no such file": "put it there, or drop its line",
    "not a file": "name a file",
    "empty file": "copy it again",
    "truncated": "copy it again from its source",
    "no samples": "record or export it again",
    "no audio stream": "name a file with audio",
    "not a number": "export it again from its source",
    "not readable as audio": "convert it to wav or flac",
    "no permission to read": "chmod a+r it, and a+x its folders",
    "not within its recording": "mend its start or duration",
    "no such channel": "mend its channel",
    "too long": "cut it",
    "no audio bytes": "embed the audio in the Parquet file",
    "not readable as Parquet": "copy it again",
}


class BrokenAudio(ValueError):
    """A file without usable audio; ``reason`` is short and countable, ``detail`` has the rest."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        self.path = path
        self.reason = reason
        self.detail = "; ".join(filter(None, (detail, REMEDIES[reason])))
        super().__init__(f"{path}: {reason} ({self.detail})")


@dataclass(frozen=True)
class Clip:
    """``wave`` mono float32 in [-1, 1], shape (samples,); ``rate`` in Hz; channels of the file."""

    wave: Wave
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate


@dataclass(frozen=True)
class Block:
    """``frames`` float32 in [-1, 1], shape (samples, channels); ``rate`` in Hz."""

    frames: Wave
    rate: int


@dataclass(frozen=True)
class Size:
    """How much audio a file holds: ``frames`` at ``rate`` Hz in each of ``channels``."""

    frames: int
    rate: int
    channels: int


def read_clip(path: Path) -> Clip:
    """Decode a whole file and mix it to mono. Raises :class:`BrokenAudio`."""
    waves = []
    for block in blocks(path):
        waves.append(block.frames.mean(axis=1, dtype=np.float32))
    wave = waves[0] if len(waves) == 1 else np.concatenate(waves)
    return Clip(wave, block.rate, block.frames.shape[1])


def measure(path: Path) -> Size:
    """Decode a whole file block by block, in little memory. Raises :class:`BrokenAudio`."""
    total = 0
    for block in blocks(path):
        total += len(block.frames)
    return Size(total, block.rate, block.frames.shape[1])


def blocks(path: Path, first: int = 0) -> Iterator[Block]:
    """A file from frame ``first`` on, at least one block.

    Raises :class:`BrokenAudio` where the file turns out to be broken.
    """
    check_is_file(path)
    _check_permission(path)
    decode = _sndfile_blocks if path.suffix.lower() in SNDFILE_SUFFIXES else _ffmpeg_blocks
    yield from _finite(path, decode(path, first))


def _finite(path: Path, decoded: Iterator[Block]) -> Iterator[Block]:
    """The blocks, at least one, while their samples are numbers."""
    empty = True
    for block in decoded:
        if not math.isfinite(float(block.frames.sum(dtype=np.float64))):
            raise BrokenAudio(path, "not a number", "NaN or infinite samples")
        empty = False
        yield block
    if empty:
        raise BrokenAudio(path, "no samples")


def check_is_file(path: Path) -> os.stat_result:
    """The state of a file that may hold audio. Raises :class:`BrokenAudio`."""
    try:
        state = path.stat()
    except PermissionError:
        raise BrokenAudio(path, "no permission to read") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise BrokenAudio(path, "no such file") from None
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a device or a pipe"
        raise BrokenAudio(path, "not a file", f"it is {kind}")
    if state.st_size == 0:
        raise BrokenAudio(path, "empty file")
    return state


def _check_permission(path: Path) -> None:
    """libsndfile and FFmpeg would say that it is no audio."""
    try:
        path.open("rb").close()
    except PermissionError:
        raise BrokenAudio(path, "no permission to read") from None


def read_wave(path: Path, rate: int) -> Wave:
    """Mono float32 at ``rate`` Hz. Raises :class:`BrokenAudio`."""
    clip = read_clip(path)
    return clip.wave if clip.rate == rate else resample(clip.wave, clip.rate, rate)


def read_upload(path: Path, rate: int, seconds: float) -> Wave:
    """As :func:`read_wave` for a file of a stranger, of which no more than ``seconds`` are decoded:
    a few MB of FLAC hold hours of silence. Its content, not its name, tells its format.

    Raises :class:`BrokenAudio`; for a longer one, too.
    """
    try:
        with soundfile.SoundFile(path) as file:
            form, own_rate = file.format, file.samplerate
    except soundfile.LibsndfileError as error:
        raise BrokenAudio(path, "not readable as audio", error.error_string.rstrip(".")) from None
    if form not in UPLOAD_FORMATS:
        raise BrokenAudio(path, "not readable as audio", f"it is {form}")
    if not UPLOAD_RATES[0] <= own_rate <= UPLOAD_RATES[1]:
        raise BrokenAudio(path, "not readable as audio", f"it has {own_rate} Hz")
    waves, frames = [], 0
    for block in _finite(path, _sndfile_blocks(path, 0)):
        waves.append(block.frames.mean(axis=1, dtype=np.float32))
        frames += len(block.frames)
        if frames > seconds * own_rate:
            raise BrokenAudio(path, "too long", f"more than {seconds:g} s")
    wave = np.concatenate(waves)
    return wave if own_rate == rate else resample(wave, own_rate, rate)


def resample(wave: Wave, rate: int, new_rate: int) -> Wave:
    """Band-limited resampling (soxr, high quality)."""
    return soxr.resample(wave, rate, new_rate, quality="HQ").astype(np.float32, copy=False)


def _sndfile_blocks(path: Path, first: int) -> Iterator[Block]:
    try:
        with soundfile.SoundFile(path) as file:
            _refuse_cut(path, file)
            # Lossy decoders give the samples of a whole decoding only after some of the past.
            read, announced = max(0, first - file.samplerate), file.frames
            file.seek(read)
            while len(frames := file.read(BLOCK, dtype="float32", always_2d=True)):
                past = max(0, first - read)
                read += len(frames)
                if past < len(frames):
                    yield Block(frames[past:], file.samplerate)
    except soundfile.LibsndfileError as error:
        detail = f"is it {path.suffix.lower()}? {error.error_string.rstrip('.')}"
        raise BrokenAudio(path, "not readable as audio", detail) from None
    if read < announced:
        raise BrokenAudio(path, "truncated", f"{read} of {announced} frames")


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


def _ffmpeg_blocks(path: Path, first: int) -> Iterator[Block]:
    """FFmpeg does not seek to a frame in every format: what lies before ``first`` is decoded."""
    skip = first
    try:
        with av.open(str(path), format=HEADERLESS.get(path.suffix.lower())) as container:
            if not container.streams.audio:
                raise BrokenAudio(path, "no audio stream")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            for packet in container.decode(stream):
                for frame in resampler.resample(packet):
                    frames = frame.to_ndarray().T[skip:].astype(np.float32, copy=False)
                    skip = max(0, skip - frame.samples)
                    if len(frames):
                        yield Block(frames, stream.rate)
    except av.error.FFmpegError as error:
        detail = f"is it {path.suffix.lower()}? {error.strerror}"
        raise BrokenAudio(path, "not readable as audio", detail) from None


class AudioPool:
    """Files ``<root>/ab/<sha256><suffix>``, of which none ever changes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, audio: bytes, suffix: str) -> str:
        """Store an encoded audio file; its name, relative to the pool. Atomic; twice is once."""
        digest = hashlib.sha256(audio).hexdigest()
        name = f"{digest[:2]}/{digest}{suffix}"
        path = self.root / name
        if not path.is_file():
            with written_aside(path) as aside:
                aside.write_bytes(audio)
        return name

    def path(self, name: str) -> Path:
        return self.root / name


IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def statement(model: str = "", whose: str = "") -> str:
    """That speech is synthetic, by which model (empty: it is not told, as in a blind test), after
    whose voice (empty: nobody's)."""
    by = f" by {model}" if model else ""
    whose = f", trained on the voice of {whose}" if whose else ""
    return f"Synthetic speech{by}{whose}. DigitalSourceType: {IPTC}. tts-assets {__version__}"


def write_speech(
    target: Path | BinaryIO,
    wave: NDArray[np.float32] | NDArray[np.int16],
    rate: int,
    comment: str,
    container: str = "WAV",
    subtype: str = "PCM_16",
) -> None:
    """Mono samples as an audio file that carries ``comment``, if there is one."""
    with soundfile.SoundFile(target, "w", rate, 1, subtype, format=container) as file:
        if comment:
            file.comment = comment
        file.write(wave)


def wav_comment(comment: str) -> bytes:
    """The chunk of a RIFF file that holds a comment."""
    text = comment.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    return struct.pack("<4sI4s4sI", b"LIST", 12 + len(text), b"INFO", b"ICMT", len(text)) + text
