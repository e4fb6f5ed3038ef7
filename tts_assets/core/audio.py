"""Audio files: reading them, storing clips by digest, and writing synthesized speech.

Reading decodes the containers of ``containers.py``, which are recognized by content, with soundfile
or FFmpeg (through PyAV), as float32. Samples beyond full scale are clipped to [-1, 1], as a player
does. Truncated files are rejected, because their transcript still contains the words of the missing
end. The check compares the length in the header (wav, aiff, au, flac, mp3), if the header has one,
and looks for an incomplete last frame (mp3) or page (ogg). g722 and aac have neither, so that
truncation is not detected there. :func:`measure` rejects audio without a usable signal.

:class:`AudioPool` stores audio that the pipeline cut from recordings or extracted from Parquet
files. Files are written once and named by their SHA-256, so that all versions of a corpus share
them. Corpora with one file per utterance are read in place instead.

:func:`write_speech` writes synthesized speech with a comment in the metadata of the file. The
comment names the model, the owner of the voice, and IPTC's term for generated media
(https://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia). It is easy to remove, and
meant for honest users. It contains no time: the same seed gives the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import re
import stat
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
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.containers import (
    MP3_SLACK,
    Mp3,
    container_of,
    last_page_is_complete,
    ogg_parts,
    read_mp3,
    read_parts,
    wav_without_length,
)

Wave = NDArray[np.float32]
SNDFILE = {"wav", "w64", "flac", "ogg", "mp3", "aiff", "au", "caf"}  # containers for libsndfile
# Containers that libsndfile opens with some codecs only; FFmpeg tries the others.
OTHER_CODECS = {"wav", "w64", "ogg", "aiff", "au", "caf"}
# Uploads are decoded by libsndfile only: FFmpeg would read the files that a playlist names.
UPLOAD_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")  # libsndfile's names; Opus is OGG
UPLOAD_RATES = (8_000, 192_000)  # Hz; a header may claim 2 GHz, and seconds of that exhaust memory
# libsndfile's log if a header announces more bytes than the file has.
ANNOUNCED = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.M)
STREAMED = 0x7FFFF000  # larger sizes mean "unknown"; sox and FFmpeg write them to pipes
BLOCK = 1 << 18  # frames; 2 MB of stereo, and most clips are one block
TOLERANCE = 0.025  # seconds by which a header may announce more than the file has
HIGHEST_PEAK = 4.0  # of full scale; above it the samples have another scale, such as int16
LEAST_SIGNAL = 2e-3  # peak to peak: 60 dB below full scale
CANCELLED = 30.0  # dB by which a mix may be below its loudest channel

REMEDIES = {
    "no such file": "put it there, or drop its line",
    "not a file": "name a file",
    "empty file": "copy it again",
    "truncated": "copy it again from its source",
    "no samples": "record or export it again",
    "no audio stream": "name a file with audio",
    "not a number": "export it again from its source",
    "another scale": "divide its samples by the full scale of their type (16 bits: 32768)",
    "no signal": "record or export it again, or drop it",
    "channels cancel": "keep one channel, or invert one",
    "not readable as audio": "convert it to wav or flac",
    "no permission to read": "chmod a+r it, and a+x its folders",
    "not within its recording": "correct its start or duration",
    "no such channel": "correct its channel",
    "too long": "cut it",
    "no audio bytes": "embed the audio in the Parquet file",
    "not readable as Parquet": "copy it again",
}


class BrokenAudio(ValueError):
    """A file without usable audio.

    ``reason`` is a key of :data:`REMEDIES`, ``detail`` has the particulars and the remedy.
    """

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        self.path = path
        self.reason = reason
        self.detail = "; ".join(filter(None, (detail, REMEDIES[reason])))
        super().__init__(f"{path}: {reason} ({self.detail})")


@dataclass(frozen=True)
class Clip:
    """A decoded file: ``wave`` is mono float32 in [-1, 1] of shape (samples,), ``rate`` is in Hz.

    ``channels`` is the number of channels of the file before the mix.
    """

    wave: Wave
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """The duration."""
        return len(self.wave) / self.rate


@dataclass(frozen=True)
class Block:
    """A part of a file: ``frames`` is float32 in [-1, 1] of shape (samples, channels)."""

    frames: Wave
    rate: int


@dataclass(frozen=True)
class Size:
    """The size of a file: ``frames`` at ``rate`` Hz in each of ``channels``.

    ``peak`` is the largest absolute sample before clipping, in units of full scale.
    """

    frames: int
    rate: int
    channels: int
    peak: float = 0.0


class Signal:
    """Peak, range and power of a signal, measured block by block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.peak = 0.0
        self._frames = 0
        self._lowest = self._highest = np.zeros(0)
        self._sum = self._power = np.zeros(0)

    def add(self, frames: Wave) -> None:
        """Measure ``frames`` (samples, channels), float32 as decoded, and their mix."""
        mixed = np.column_stack([frames, frames.mean(axis=1)]).astype(np.float64)
        low, high = mixed.min(axis=0), mixed.max(axis=0)
        total, power = mixed.sum(axis=0), np.square(mixed).sum(axis=0)
        if self._frames:
            low, high = np.minimum(low, self._lowest), np.maximum(high, self._highest)
            total, power = total + self._sum, power + self._power
        self._lowest, self._highest, self._sum, self._power = low, high, total, power
        self._frames += len(frames)
        self.peak = float(max(self.peak, np.abs(frames).max()))

    def check(self) -> None:
        """Raises :class:`BrokenAudio` if the signal cannot be used."""
        if self.peak > HIGHEST_PEAK:
            raise BrokenAudio(self._path, "another scale", f"its peak is {self.peak:.6g}, not 1")
        *channels, mix = self._highest - self._lowest
        mean = self._sum / self._frames
        variance = np.maximum(self._power / self._frames - np.square(mean), 0.0)
        if max(channels) < LEAST_SIGNAL:
            offset = float(np.abs(mean).max())
            constant = f"a constant {offset:.3g}" if offset > LEAST_SIGNAL else "silence"
            raise BrokenAudio(self._path, "no signal", constant)
        loudest = float(variance[:-1].max())
        if mix < LEAST_SIGNAL or variance[-1] < loudest * 10 ** (-CANCELLED / 10):
            detail = f"the mix of its {len(channels)} channels is nearly silent"
            raise BrokenAudio(self._path, "channels cancel", detail)


def read_clip(path: Path) -> Clip:
    """Decode a whole file and mix it to mono. Raises :class:`BrokenAudio`."""
    waves = []
    for block in blocks(path):
        waves.append(block.frames.mean(axis=1, dtype=np.float32))
    wave = waves[0] if len(waves) == 1 else np.concatenate(waves)
    return Clip(wave, block.rate, block.frames.shape[1])


def measure(path: Path) -> Size:
    """Count the frames of a file by decoding it in blocks, and check its signal.

    Raises :class:`BrokenAudio`, also for audio of another scale, without a signal, or whose
    channels cancel each other.
    """
    total, signal = 0, Signal(path)
    for block in _decoded(path):
        total += len(block.frames)
        signal.add(block.frames)
    signal.check()
    return Size(total, block.rate, block.frames.shape[1], signal.peak)


def blocks(path: Path, first: int = 0) -> Iterator[Block]:
    """Decode a file from frame ``first`` on, in at least one block.

    Raises :class:`BrokenAudio`, possibly after some blocks.
    """
    for block in _decoded(path, first):
        yield Block(np.clip(block.frames, -1.0, 1.0), block.rate)


def _decoded(path: Path, first: int = 0) -> Iterator[Block]:
    """As :func:`blocks`, without clipping."""
    check_is_file(path)
    try:
        form = container_of(path)
    except PermissionError:
        raise BrokenAudio(path, "no permission to read") from None
    if form is None:
        with path.open("rb") as stream:
            detail = f"is it {path.suffix.lower()}? it begins with {stream.read(8)!r}"
        raise BrokenAudio(path, "not readable as audio", detail)
    if form == "ogg" and not last_page_is_complete(path):
        raise BrokenAudio(path, "truncated", "its last Ogg page is incomplete")
    yield from _finite(path, _blocks_of(path, form, first))


def _blocks_of(path: Path, form: str, first: int) -> Iterator[Block]:
    """Decode with libsndfile where it reads the container, else with FFmpeg."""
    if form not in SNDFILE or (form == "wav" and wav_without_length(path)):
        yield from _ffmpeg_blocks(path, form, first)
        return
    if form == "ogg" and len(parts := ogg_parts(path)) > 1:
        yield from _chained_blocks(path, parts, first)
        return
    mp3 = read_mp3(path) if form == "mp3" else None
    if mp3 is not None and mp3.missing:
        raise BrokenAudio(path, "truncated", f"its last frame lacks {mp3.missing} bytes")
    if mp3 is not None and (mp3.samples is None or len(mp3.parts) > 1):
        # libsndfile stops at a length that it estimates from the first frame, or at the first part.
        yield from _ffmpeg_blocks(path, form, first, mp3)
        return
    started = False
    try:
        for block in _sndfile_blocks(path, first, mp3):
            started = True
            yield block
    except BrokenAudio as error:
        if started or form not in OTHER_CODECS or error.reason != "not readable as audio":
            raise
        try:
            yield from _ffmpeg_blocks(path, form, first)
        except BrokenAudio:
            raise error from None


def _finite(path: Path, decoded: Iterator[Block]) -> Iterator[Block]:
    """Pass blocks on. Raises :class:`BrokenAudio` for NaN or infinity, or if there is no block."""
    empty = True
    for block in decoded:
        if not math.isfinite(float(block.frames.sum(dtype=np.float64))):
            raise BrokenAudio(path, "not a number", "NaN or infinite samples")
        empty = False
        yield block
    if empty:
        raise BrokenAudio(path, "no samples")


def check_is_file(path: Path) -> os.stat_result:
    """``path.stat()`` of a regular, non-empty file. Raises :class:`BrokenAudio` for others."""
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


def read_wave(path: Path, rate: int) -> Wave:
    """Decode a file to mono float32 at ``rate`` Hz. Raises :class:`BrokenAudio`."""
    clip = read_clip(path)
    return clip.wave if clip.rate == rate else resample(clip.wave, clip.rate, rate)


def read_upload(path: Path, rate: int, seconds: float) -> Wave:
    """Decode an untrusted file to mono float32 at ``rate`` Hz.

    The format is determined from the content, not from the name. At most ``seconds`` are decoded,
    because a few MB of FLAC can hold hours of silence. Raises :class:`BrokenAudio`, also for a
    longer file.
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
    waves, frames, signal = [], 0, Signal(path)
    for block in _finite(path, _blocks_of(path, container_of(path) or "", 0)):
        signal.add(block.frames)
        waves.append(np.clip(block.frames, -1.0, 1.0).mean(axis=1, dtype=np.float32))
        frames += len(block.frames)
        if frames > seconds * own_rate:
            raise BrokenAudio(path, "too long", f"more than {seconds:g} s")
    signal.check()
    wave = np.concatenate(waves)
    return wave if own_rate == rate else resample(wave, own_rate, rate)


def resample(wave: Wave, rate: int, new_rate: int) -> Wave:
    """Band-limited resampling (soxr, high quality)."""
    return soxr.resample(wave, rate, new_rate, quality="HQ").astype(np.float32, copy=False)


def _chained_blocks(path: Path, parts: list[tuple[int, int]], first: int) -> Iterator[Block]:
    """Decode a chained Ogg file, of which libsndfile would read the first part only."""
    formats, skip = set(), first
    for part in parts:
        for block in _sndfile_blocks(path, 0, None, io.BytesIO(read_parts(path, [part]))):
            formats.add((block.rate, block.frames.shape[1]))
            if len(formats) > 1:
                raise BrokenAudio(path, "not readable as audio", "its parts differ in format")
            if skip < len(block.frames):
                yield Block(block.frames[skip:], block.rate)
            skip = max(0, skip - len(block.frames))


def _sndfile_blocks(
    path: Path, first: int, mp3: Mp3 | None, part: BinaryIO | None = None
) -> Iterator[Block]:
    """Decode a file, or a ``part`` of it, with libsndfile."""
    try:
        with soundfile.SoundFile(part or path) as file:
            _refuse_cut(path, file)
            # Lossy decoders need some past: after a seek their first samples differ.
            read, announced = max(0, first - file.samplerate), file.frames
            if read:
                file.seek(read)
            while len(frames := file.read(BLOCK, dtype="float32", always_2d=True)):
                past = max(0, first - read)
                read += len(frames)
                if past < len(frames):
                    yield Block(frames[past:], file.samplerate)
            tolerance = TOLERANCE * file.samplerate
    except soundfile.LibsndfileError as error:
        detail = f"is it {path.suffix.lower()}? {error.error_string.rstrip('.')}"
        raise BrokenAudio(path, "not readable as audio", detail) from None
    if mp3 is not None:
        announced, tolerance = mp3.samples or 0, MP3_SLACK
    if read < announced - tolerance:
        raise BrokenAudio(path, "truncated", f"{read} of {announced} frames")


def _refuse_cut(path: Path, file: soundfile.SoundFile) -> None:
    """Reject truncated files that libsndfile would read without an error."""
    for size, present in ANNOUNCED.findall(file.extra_info):
        missing = int(size) - int(present)
        per_second = int(present) / file.frames * file.samplerate if file.frames else 0.0
        if missing > TOLERANCE * per_second and int(size) < STREAMED:
            raise BrokenAudio(path, "truncated", f"{present} of {size} bytes")


def _ffmpeg_blocks(path: Path, form: str, first: int, mp3: Mp3 | None = None) -> Iterator[Block]:
    """Decode with FFmpeg and the demuxer ``form``; of an mp3 only its parts, if it has others.

    The file is opened here, so that FFmpeg uses no protocol. It cannot seek to a frame in every
    format: audio before ``first`` is decoded and dropped.
    """
    skip = first
    try:
        parts = mp3.parts if mp3 else ()
        whole = len(parts) < 2 and (not parts or parts[0][1] == path.stat().st_size)
        source = path.open("rb") if whole else io.BytesIO(read_parts(path, parts))
        with source as file, av.open(file, mode="r", format=form) as container:
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
    """Immutable files ``<root>/ab/<sha256><suffix>``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, audio: bytes, suffix: str) -> str:
        """Store an encoded audio file atomically, unless it exists. Returns its relative path."""
        digest = hashlib.sha256(audio).hexdigest()
        name = f"{digest[:2]}/{digest}{suffix}"
        path = self.root / name
        if not path.is_file():
            with atomic_write(path) as aside:
                aside.write_bytes(audio)
        return name

    def path(self, name: str) -> Path:
        """The absolute path of a name that :meth:`put` returned."""
        return self.root / name


IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def statement(model: str = "", whose: str = "") -> str:
    """The comment that marks speech as synthetic.

    ``model`` is empty in blind tests. ``whose`` is the owner of the voice, empty if unknown.
    """
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
    """Write mono samples of shape (samples,) to an audio file, with a non-empty ``comment``."""
    with soundfile.SoundFile(target, "w", rate, 1, subtype, format=container) as file:
        if comment:
            file.comment = comment
        file.write(wave)
