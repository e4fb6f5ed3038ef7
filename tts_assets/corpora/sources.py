"""Audio opened once: its digest, length, rate and channels, or what is wrong with it.

What was found is remembered in the cache ``audio`` under the state (path, size, modification
time) of the file, so that an unchanged file is not opened again. Audio that is no file of its own
becomes one in the audio pool; a part is remembered under the digest of its recording.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tts_assets.artifacts import ArtifactStore, sha256_file
from tts_assets.audio import BrokenAudio, check_is_file, measure
from tts_assets.audio_pool import AudioPool
from tts_assets.cache import RecordCache
from tts_assets.config import digest_of
from tts_assets.corpora.cut import cut
from tts_assets.corpora.embedded import EmbeddedAudio
from tts_assets.corpora.readers.entry import Audio, Embedded, Part

VERSION = "1"  # of what is remembered: another one when reading or cutting changes
THREADS = 4  # decoding releases the GIL
AHEAD = 2 * THREADS  # clips that wait for a thread: memory does not grow with a corpus
KEPT_AT_ONCE = 64  # a kill loses no more than this many measurements
TOLERANCE = 0.025  # seconds by which a manifest may be wrong about a recording's length
FLEETING = {"no such file", "not a file", "no permission to read"}  # not faults of the content


@dataclass(frozen=True)
class Measured:
    """A file of ``frames`` at ``sample_rate`` Hz. ``pooled`` is its name in the pool, empty for
    audio used where it lies; ``cut_from`` the digest of the recording in which it begins at frame
    ``first``."""

    sha256: str
    frames: int
    sample_rate: int
    channels: int
    pooled: str = ""
    cut_from: str = ""
    first: int = 0

    def seconds(self, frames: int) -> float:
        """A number of its frames as seconds."""
        return round(frames / self.sample_rate, 6)


@dataclass(frozen=True)
class Fault:
    """Why audio cannot be used: the reason and the remedy of BrokenAudio."""

    reason: str
    detail: str


Found = Measured | Fault
Job = Callable[[], Found]
T = TypeVar("T")


class Sources:
    """Opens the audio of entries and remembers it. ``store`` has the cache and the pool."""

    def __init__(self, store: ArtifactStore) -> None:
        self._pool = AudioPool(store.audio_pool)
        self._cache = RecordCache(store.cache("audio"))
        self._embedded = EmbeddedAudio()

    def open(self, audio: Iterable[Audio]) -> dict[Audio, Found]:
        """What each is found to be."""
        wanted = dict.fromkeys(audio)
        parts = [one for one in wanted if isinstance(one, Part)]
        files = [one for one in wanted if isinstance(one, Path)] + [part.file for part in parts]
        embedded = [one for one in wanted if isinstance(one, Embedded)]
        found: dict[Audio, Found] = {}
        found |= self._find(files, file_key, lambda path: partial(measure_file, path))
        found |= self._find(embedded, embedded_key, self._extraction)
        cuts: dict[Part, Measured] = {}
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
        """What is remembered under the key of each, or else what its job finds."""
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
            remembered = _load(known[state]) if state in known else None
            if remembered is not None and self._is_there(remembered):
                found[one] = remembered
        new: dict[str, Any] = {}
        for one, result in in_threads((one, job(one)) for one in keys if one not in found):
            found[one] = result
            unchanged = attempt(partial(key, one)) == keys[one]  # while it was read
            if unchanged and not (isinstance(result, Fault) and result.reason in FLEETING):
                new[keys[one]] = asdict(result)
            if len(new) >= KEPT_AT_ONCE:
                self._cache.put(new)
                new = {}
        self._cache.put(new)
        return found

    def _is_there(self, found: Found) -> bool:
        pooled = isinstance(found, Measured) and found.pooled
        return not pooled or self._pool.path(pooled).is_file()

    def _extraction(self, audio: Embedded) -> Job:
        """Bytes are read here, one after the other; threads do the rest."""
        encoded = attempt(partial(self._embedded.read, audio))
        return (lambda: encoded) if isinstance(encoded, Fault) else partial(self._put, *encoded)

    def _put(self, encoded: bytes, suffix: str) -> Measured:
        name = self._pool.put(encoded, suffix)
        return replace(measure_file(self._pool.path(name)), pooled=name)

    def _cut(self, part: Part, recording: Measured) -> Measured:
        first, last = frames_of(part, recording)
        flac = cut(part.file, first, last, part.channels)
        return replace(self._put(flac, ".flac"), cut_from=recording.sha256, first=first)


def measure_file(path: Path) -> Measured:
    """Read all of a file. Raises BrokenAudio."""
    size = measure(path)
    return Measured(sha256_file(path), size.frames, size.rate, size.channels)


def covers(part: Part, recording: Measured) -> bool:
    """Whether a part is all of its recording, which is then used as it lies."""
    end = recording.frames / recording.sample_rate
    all_channels = tuple(range(recording.channels))
    return (
        part.channels in ((), all_channels)
        and part.start <= TOLERANCE
        and abs(part.start + part.duration - end) <= TOLERANCE
    )


def frames_of(part: Part, recording: Measured) -> tuple[int, int]:
    """The first frame of a part and the one behind its last. Raises BrokenAudio."""
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
    """Raises BrokenAudio if no file can be there."""
    state = check_is_file(path)
    return digest_of([VERSION, path, state.st_size, state.st_mtime_ns])


def embedded_key(audio: Embedded) -> str:
    return digest_of([file_key(audio.file), audio.column, audio.row])


def part_key(part: Part, recording: Measured) -> str:
    frames = frames_of(part, recording)
    return digest_of([VERSION, recording.sha256, *frames, part.channels])


def attempt(work: Callable[[], T]) -> T | Fault:
    """What ``work`` returns, or what it finds broken."""
    try:
        return work()
    except BrokenAudio as error:
        return Fault(error.reason, error.detail)


def in_threads(jobs: Iterable[tuple[Audio, Job]]) -> Iterator[tuple[Audio, Found]]:
    """Results in the order of the jobs, of which only a few are drawn ahead."""
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
