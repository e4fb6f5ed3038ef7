"""Opens the audio of a corpus once: digest, length, sample rate and channels, or what is wrong.

Results are cached by the state of the file (path, size, modification time), so that an unchanged
file is not opened again. A part of a recording, or audio inside a Parquet file, becomes a file of
the audio pool. Parts are cached by the digest of their recording and become FLAC files with the
same samples. Parquet files are read forward in the memory of one page.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from tts_assets.core.artifacts import ArtifactStore, sha256_file
from tts_assets.core.audio import (
    AudioPool,
    BrokenAudio,
    blocks,
    check_is_file,
    measure,
)
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import digest_of
from tts_assets.core.containers import HEAD, HEADERLESS, SUFFIXES, container, container_of
from tts_assets.corpora.readers.files import Audio, Embedded, RecordingPart
from tts_assets.corpora.readers.manifests import STREAMED

VERSION = "3"  # of cached results; raise it when reading or cutting changes
THREADS = 4  # decoding releases the GIL
AHEAD = 2 * THREADS  # clips that wait for a thread; bounds the memory
FLUSH_EVERY = 64  # results; a kill loses no more
TOLERANCE = 0.025  # seconds; the permitted error of a manifest's duration
FLEETING = {"no such file", "not a file", "no permission to read"}  # not cached: the file is fine
ROWS = 16  # of audio in memory
# Subtypes of libsndfile and sample formats of FFmpeg with up to 16 bits.
SIXTEEN_BITS = {"PCM_S8", "PCM_U8", "PCM_16", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "ALAC_16"}
SIXTEEN_BITS |= {"u8", "u8p", "s16", "s16p"}


@dataclass(frozen=True)
class Measured:
    """A file of ``frames`` at ``sample_rate`` Hz.

    ``pooled`` is its name in the audio pool, if it lies there. A part of a recording has the digest
    of the recording, ``cut_from``, and begins there at frame ``first``.
    """

    sha256: str
    frames: int
    sample_rate: int
    channels: int
    peak: float = 0.0
    pooled: str = ""
    cut_from: str = ""
    first: int = 0

    def seconds(self, frames: int) -> float:
        """``frames`` in seconds."""
        return round(frames / self.sample_rate, 6)


@dataclass(frozen=True)
class Fault:
    """The reason and remedy of audio that cannot be used, as in BrokenAudio."""

    reason: str
    detail: str


Found = Measured | Fault
Job = Callable[[], Found]
T = TypeVar("T")


class Sources:
    """Opens the audio of entries; ``store`` has the cache and the audio pool."""

    def __init__(self, store: ArtifactStore) -> None:
        self._pool = AudioPool(store.audio_pool)
        self._cache = RecordCache(store.cache("audio"))
        self._embedded = EmbeddedAudio()

    def open(self, audio: Iterable[Audio]) -> dict[Audio, Found]:
        """The result for each audio."""
        wanted = dict.fromkeys(audio)
        parts = [one for one in wanted if isinstance(one, RecordingPart)]
        files = [one for one in wanted if isinstance(one, Path)] + [part.file for part in parts]
        embedded = [one for one in wanted if isinstance(one, Embedded)]
        found: dict[Audio, Found] = {}
        found |= self._find(files, file_key, lambda path: partial(measure_file, path))
        found |= self._find(embedded, embedded_key, self._extraction)
        cuts: dict[RecordingPart, Measured] = {}
        for part in parts:
            recording = found[part.file]
            if isinstance(recording, Fault) or covers(part, recording):
                found[part] = recording
            else:
                cuts[part] = recording
        found |= self._find(
            cuts,
            lambda part: part_key(part, cuts[part]),
            lambda part: partial(self._cut, part, cuts[part]),
        )
        return found

    def _find(
        self, wanted: Iterable[Audio], key: Callable[[Any], str], job: Callable[[Any], Job]
    ) -> dict[Audio, Found]:
        """The cached result under the key of each audio, or the result of its job."""
        found: dict[Audio, Found] = {}
        keys: dict[Audio, str] = {}
        for one in wanted:
            state = attempt(partial(key, one))
            if isinstance(state, Fault):
                found[one] = state
            else:
                keys[one] = state
        known = self._cache.get(keys.values())
        for one, state in keys.items():
            cached = _load(known[state]) if state in known else None
            if cached is not None and self._in_pool(cached):
                found[one] = cached
        new: dict[str, Any] = {}
        for one, result in in_threads((one, job(one)) for one in keys if one not in found):
            found[one] = result
            unchanged = attempt(partial(key, one)) == keys[one]  # while it was read
            if unchanged and not (isinstance(result, Fault) and result.reason in FLEETING):
                new[keys[one]] = asdict(result)
            if len(new) >= FLUSH_EVERY:
                self._cache.put(new)
                new = {}
        self._cache.put(new)
        return found

    def _in_pool(self, found: Found) -> bool:
        pooled = isinstance(found, Measured) and found.pooled
        return not pooled or self._pool.path(pooled).is_file()

    def _extraction(self, audio: Embedded) -> Job:
        """The bytes are read here in order; threads do the rest."""
        encoded = attempt(partial(self._embedded.read, audio))
        return (lambda: encoded) if isinstance(encoded, Fault) else partial(self._put, *encoded)

    def _put(self, encoded: bytes, suffix: str) -> Measured:
        name = self._pool.put(encoded, suffix)
        return replace(measure_file(self._pool.path(name)), pooled=name)

    def _cut(self, part: RecordingPart, recording: Measured) -> Measured:
        first, last = frames_of(part, recording)
        flac = cut(part.file, first, last, part.channels)
        return replace(self._put(flac, ".flac"), cut_from=recording.sha256, first=first)


def measure_file(path: Path) -> Measured:
    """Decode a whole file. Raises BrokenAudio."""
    size = measure(path)
    return Measured(sha256_file(path), size.frames, size.rate, size.channels, round(size.peak, 4))


def covers(part: RecordingPart, recording: Measured) -> bool:
    """Whether a part is its whole recording, which is then used without a copy."""
    end = recording.frames / recording.sample_rate
    all_channels = tuple(range(recording.channels))
    return (
        part.channels in ((), all_channels)
        and part.start <= TOLERANCE
        and abs(part.start + part.duration - end) <= TOLERANCE
    )


def frames_of(part: RecordingPart, recording: Measured) -> tuple[int, int]:
    """The first frame of a part and the frame after its last. Raises BrokenAudio."""
    rate, end = recording.sample_rate, part.start + part.duration
    first, last = round(part.start * rate), min(round(end * rate), recording.frames)
    if end > recording.frames / rate + TOLERANCE or first >= last:
        detail = f"{part.start} to {end} s of {recording.seconds(recording.frames)} s"
        raise BrokenAudio(part.file, "not within its recording", detail)
    if any(channel >= recording.channels for channel in part.channels):
        detail = f"channel {max(part.channels)} of {recording.channels}, counted from 0"
        raise BrokenAudio(part.file, "no such channel", detail)
    return first, last


def file_key(path: Path) -> str:
    """The cache key of a file. Raises BrokenAudio if there is no regular file."""
    state = check_is_file(path)
    return digest_of([VERSION, path, state.st_size, state.st_mtime_ns])


def embedded_key(audio: Embedded) -> str:
    """The cache key of audio inside a Parquet file."""
    return digest_of([file_key(audio.file), audio.column, audio.row])


def part_key(part: RecordingPart, recording: Measured) -> str:
    """The cache key of a part of a recording."""
    frames = frames_of(part, recording)
    return digest_of([VERSION, recording.sha256, *frames, part.channels])


def attempt(work: Callable[[], T]) -> T | Fault:
    """The result of ``work``, or the Fault of the BrokenAudio that it raises."""
    try:
        return work()
    except BrokenAudio as error:
        return Fault(error.reason, error.detail)


def in_threads(jobs: Iterable[tuple[Audio, Job]]) -> Iterator[tuple[Audio, Found]]:
    """Yield results in the order of the jobs; at most AHEAD jobs are started early."""
    with ThreadPoolExecutor(THREADS) as threads:
        waiting: deque[tuple[Audio, Future[Found]]] = deque()
        for one, job in jobs:
            waiting.append((one, threads.submit(attempt, job)))
            if len(waiting) >= AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _load(value: dict[str, Any]) -> Found:
    return Fault(**value) if "reason" in value else Measured(**value)


def cut(path: Path, first: int, last: int, channels: Sequence[int] = ()) -> bytes:
    """A FLAC file with frames ``first`` to before ``last`` of ``channels`` (from 0; empty: all).

    Sources of up to 16 bits become 16-bit FLAC and those of 24 bits 24-bit FLAC, sample for
    sample. 32-bit, float and lossy sources are rounded to 24 bits (144 dB below full scale);
    float samples beyond full scale are clipped. Opus adds noise that depends on the start of
    decoding: a cut differs from the whole by -60 dB. Raises BrokenAudio.
    """
    found, left = [], last - first
    for block in blocks(path, first):
        found.append(block.frames[:left, list(channels)] if channels else block.frames[:left])
        left -= len(found[-1])
        if left <= 0:
            break
    bits = 16 if _sample_type(path) in SIXTEEN_BITS else 24
    # float32 holds 24 bits exactly, so that these are the samples of the file.
    scaled = np.rint(np.concatenate(found).astype(np.float64) * 2 ** (bits - 1))
    whole = np.clip(scaled, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int32)
    flac = io.BytesIO()
    soundfile.write(flac, whole << (32 - bits), block.rate, format="FLAC", subtype=f"PCM_{bits}")
    return flac.getvalue()


def _sample_type(path: Path) -> str:
    """The subtype of libsndfile, or the sample format of FFmpeg."""
    try:
        return soundfile.info(path).subtype
    except soundfile.LibsndfileError:
        form = container_of(path)
        with path.open("rb") as file, av.open(file, format=form) as container:
            return container.streams.audio[0].codec_context.format.name


def suffix_of(audio: bytes, name: str = "") -> str | None:
    """The suffix of an encoded file by its first bytes, else by its ``name``; None if unknown."""
    form = container(audio[:HEAD])
    if form is not None:
        return SUFFIXES.get(form, f".{form}")
    suffix = Path(name).suffix.lower()
    return suffix if suffix in HEADERLESS else None


class EmbeddedAudio:
    """Reads cells of audio columns; fast if they are read in order."""

    def __init__(self) -> None:
        self._open: tuple[Path, str] | None = None
        self._rows: Iterator[tuple[int, pa.Scalar]] = iter(())
        self._next = 0

    def read(self, wanted: Embedded) -> tuple[bytes, str]:
        """The encoded audio of a row and its suffix. Raises :class:`BrokenAudio`."""
        if self._open != (wanted.file, wanted.column) or wanted.row < self._next:
            self._open = (wanted.file, wanted.column)
            self._rows = _rows(wanted)
        try:
            cell = next((cell for row, cell in self._rows if row == wanted.row), None)
        except (pa.ArrowInvalid, OSError) as error:
            self._open = None
            if getattr(error, "errno", None):
                raise  # a fault of the machine, not of the file
            raise BrokenAudio(wanted.file, "not readable as Parquet", str(error)) from None
        self._next = wanted.row + 1
        return _audio(wanted, cell.as_py() if cell is not None else None)


def _rows(first: Embedded) -> Iterator[tuple[int, pa.Scalar]]:
    """Yield numbered cells of a column, from the row group that holds ``first``."""
    with pq.ParquetFile(first.file, **STREAMED) as file:
        number, groups = 0, list(range(file.num_row_groups))
        while (
            groups and number + (size := file.metadata.row_group(groups[0]).num_rows) <= first.row
        ):
            number += size
            groups.pop(0)
        for batch in file.iter_batches(ROWS, row_groups=groups, columns=[first.column]):
            for cell in batch.column(0):
                yield number, cell
                number += 1


def _audio(wanted: Embedded, value: Any) -> tuple[bytes, str]:
    audio, name = value, ""
    if isinstance(value, dict):
        audio, name = value.get("bytes"), value.get("path") or ""
    if not audio:
        detail = f"only the path {name!r}" if name else "the cell is empty"
        raise BrokenAudio(wanted.file, "no audio bytes", detail)
    suffix = suffix_of(audio, name)
    if suffix is None:
        raise BrokenAudio(wanted.file, "not readable as audio", f"it begins with {audio[:8]!r}")
    return audio, suffix
