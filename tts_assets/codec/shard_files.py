"""Frames of codes, files of codec shards, and the reuse of codes from earlier shards.

A *frame* is the shortest stretch of audio with a whole number of codes of every codebook. Its codes
follow each other in the order of the codec's *pattern*, the codebook of each position of a frame.
Every position has integers of its own: code ``c`` at position ``k`` is the sum of the sizes of all
positions before ``k``, plus ``c``. SNAC with the pattern (0, 1, 2, 2, 1, 2, 2) and 4,096 codes a
codebook thus has 7 x 4,096 different codes, as in Orpheus. A codec with one codebook has frames of
one code.

A shard is a run of consecutive utterances of a sample list. While it is made it is one folder,
which is written by an atomic rename. The published artifact has the files of all its shards side by
side, ``shard-00000.codes.npy`` and so on.

Published ``codec_shards`` serve as a cache of codes by the SHA-256 of the audio. Codes are read
only from files that still match their manifest, so damaged files do not spread.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, read_set_aside, write_set_aside
from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    CodecCheckpoint,
    CodecShards,
    Manifest,
    atomic_write,
    sha256_file,
)
from tts_assets.core.config import ConfigError
from tts_assets.core.metadata import CheckResult, Metadata, column_schema, set_aside_reasons
from tts_assets.corpora.samples import ABOUT_SAMPLES, FIELDS, Sample, write_samples

OPEN = 64  # codes of shards that stay mapped; Linux allows 65,530 maps of a process
CODES, INDEX, SAMPLES = "codes.npy", "index.npy", "samples.jsonl"
EFFORT_FILE = "effort.json"

Effort = Counter[str]


@dataclass(frozen=True)
class Frame:
    """The number of different codes at each position of a frame."""

    sizes: tuple[int, ...]

    def __len__(self) -> int:
        """The number of codes in a frame."""
        return len(self.sizes)

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """The first code of each position, then the number of all codes, (positions + 1,)."""
        return np.cumsum([0, *self.sizes])

    def positions(self, codes: ArrayLike) -> NDArray[np.int64]:
        """The position in a frame that each code belongs to; same shape."""
        return np.searchsorted(self.bounds[1:], np.asarray(codes), side="right")

    def first_misplaced(self, codes: NDArray[np.integer[Any]]) -> int | None:
        """The index of the first code that belongs to another position; None without one.

        ``codes`` (codes,) start with a frame.
        """
        if len(self) == 1:
            return None
        wrong = np.flatnonzero(self.positions(codes) != np.arange(len(codes)) % len(self))
        return int(wrong[0]) if len(wrong) else None

    def whole(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The frames at the start of ``codes`` (codes,) that are complete and in order."""
        first = self.first_misplaced(codes)
        valid = len(codes) if first is None else first
        return codes[: valid - valid % len(self)]

    def problem(self, codes: NDArray[np.integer[Any]]) -> str:
        """What is wrong with ``codes`` (codes,) as whole frames; empty if nothing is."""
        size = len(self)
        first = self.first_misplaced(codes)
        if first is not None:
            return (
                f"frame {first // size} is broken: its code {codes[first]} belongs to position "
                f"{int(self.positions(codes[first]))} of a frame, but is at position {first % size}"
            )
        if len(codes) % size:
            return f"the last frame is broken: it has {len(codes) % size} of {size} codes"
        return ""


def nested_pattern(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The pattern of a codec whose codebooks have different rates, from coarse to fine.

    ``strides`` are the lengths of a code of each codebook. A code is followed by those of the next
    codebook in its first part, and so on: (4, 2, 1) gives (0, 1, 2, 2, 1, 2, 2), Orpheus's order.
    """

    def below(level: int) -> tuple[int, ...]:
        if level + 1 == len(strides):
            return (level,)
        return (level, *(below(level + 1) * (strides[level] // strides[level + 1])))

    return below(0)


"""Counts of the work: clips ``encoded``, those encoded ``again`` alone, clips ``reused``, ``codes``
and ``padded`` codes of batches, and the ``milliseconds`` of encoding on one rank."""


@dataclass(frozen=True)
class Shard:
    """``count`` consecutive utterances of a sample list, starting at the byte ``offset``."""

    number: int
    offset: int
    count: int

    @property
    def name(self) -> str:
        """The name of its folder and the prefix of its published files."""
        return f"shard-{self.number:05d}"

    def lines(self, samples: Path) -> list[bytes]:
        """The shard's lines of the sample list."""
        with samples.open("rb") as stream:
            stream.seek(self.offset)
            return list(itertools.islice(stream, self.count))

    def samples(self, samples: Path) -> list[Sample]:
        """The shard's utterances. Raises ConfigError for an invalid line."""
        where = f"{samples}, {self.name}"
        return [Sample.parse(json.loads(line), where) for line in self.lines(samples)]


def split_into_shards(samples: Path, size: int) -> list[Shard]:
    """Shards of ``size`` lines of a sample list; the last one may be shorter."""
    shards: list[Shard] = []
    offset = 0
    with samples.open("rb") as stream:
        while lines := list(itertools.islice(stream, size)):
            shards.append(Shard(len(shards), offset, len(lines)))
            offset += sum(map(len, lines))
    return shards


@dataclass
class ShardResult:
    """The content of a shard: codes by the index of their utterance in ``samples``."""

    samples: list[Sample]
    codes: dict[int, ShardCodes] = field(default_factory=dict)
    aside: list[SetAside] = field(default_factory=list)
    effort: Effort = field(default_factory=Counter)

    def write(self, target: Path, dtype: str) -> None:
        """Write the folder ``target`` atomically.

        It has the concatenated codes of ``dtype``, the offset of each utterance (int64), the
        samples, the utterances that were set aside, and the effort.
        """
        rows = sorted(self.codes)
        codes = [self.codes[row] for row in rows]
        starts = np.cumsum([0, *map(len, codes)], dtype=np.int64)[: len(rows)]
        with atomic_write(target) as work:
            work.mkdir()
            np.save(work / CODES, np.concatenate([np.array([], dtype), *codes]))
            np.save(work / INDEX, starts)
            write_samples(work / SAMPLES, [self.samples[row] for row in rows])
            write_set_aside(work / SET_ASIDE_FILE, self.aside)
            (work / EFFORT_FILE).write_text(json.dumps(self.effort, sort_keys=True))


ShardCodes = NDArray[np.integer[Any]]  # (codes,), of the smallest type for the codebook
# Quotes within JSON strings are escaped, so this pattern matches a key and its value only.
DIGEST = re.compile(rb'"audio_sha256": ?"([0-9a-f]{64})"')


def reusable_shards(
    store: ArtifactStore, code_version: str, codec: CodecCheckpoint, partition: str
) -> list[Path]:
    """The current ``codec_shards`` of all corpora that have this code version and codec.

    The shards of ``partition`` come first, because they contain most of the audio that is needed.
    """
    links = sorted(store.root.glob("codec_shards/*/current"))
    found = []
    for link in sorted(links, key=lambda link: link.parent.name != partition):
        try:
            manifest = Manifest.from_json(link / MANIFEST)
        except ConfigError:  # the asset that opens the artifact reports it
            continue
        same_code = manifest.code_version == code_version
        if same_code and manifest.facts.get("codec") == codec.content:
            found.append(link.resolve())
    return found


@lru_cache(OPEN)
def mapped(path: Path) -> ShardCodes:
    """The codes of a shard, memory-mapped."""
    codes: ShardCodes = np.load(path, mmap_mode="r").view(np.ndarray)
    return codes


class EarlierCodes:
    """The codes of clips by audio digest, read from earlier artifacts.

    ``folders`` are artifacts of the kind ``codec_shards``. They are searched in their order until
    all digests in ``wanted`` are found. Artifacts of another codec are skipped. Damaged ones are
    skipped, too, and reported to ``note``.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        codec_content: str,
        wanted: Iterable[str],
        note: Callable[[str], None],
    ) -> None:
        self.tables: list[tuple[Path, NDArray[np.int64]]] = []  # codes and bounds of shards
        self.positions: dict[str, tuple[int, int]] = {}  # digest: table, row
        missing = set(wanted)
        for folder in folders:
            try:
                shards = CodecShards.open(folder)
            except ArtifactError as error:
                note(f"skipped for the reuse of codes: {error}")
                continue
            if shards.facts.codec != codec_content:
                continue
            for number in range(shards.facts.shards):
                if not missing:
                    return
                try:
                    missing -= self._add(shards, number, missing)
                except (ArtifactError, ValueError) as error:
                    note(f"skipped for the reuse of codes: {error}")

    def get(self, digest: str | None) -> ShardCodes | None:
        """The codes (codes,) of a clip, a view of the mapped file; None if there are none."""
        if digest not in self.positions:
            return None
        table, row = self.positions[digest]
        path, bounds = self.tables[table]
        return mapped(path)[bounds[row] : bounds[row + 1]]

    def _add(self, shards: CodecShards, number: int, wanted: set[str]) -> set[str]:
        """Record the positions of the wanted clips of a shard; return their digests.

        Raises :class:`ArtifactError` if its files are damaged.
        """
        name = f"shard-{number:05d}"
        codes_path, index_path, samples_path = (
            shards.path / f"{name}.{file}" for file in ("codes.npy", "index.npy", "samples.jsonl")
        )
        check_bytes(shards, samples_path)
        lines = samples_path.read_bytes().splitlines()
        rows = {digest: row for row, line in enumerate(lines) if (digest := audio_digest(line))}
        found = wanted & rows.keys()
        if not found:
            return found
        check_bytes(shards, codes_path, index_path)
        codes = mapped(codes_path)
        bounds = np.append(np.load(index_path), len(codes))
        fits = len(bounds) == len(lines) + 1 and np.all(np.diff(bounds) > 0)
        if not fits or codes.max() >= shards.facts.codebook_size:
            raise ArtifactError(f"{codes_path}, its index and its samples do not fit together")
        self.positions |= {digest: (len(self.tables), rows[digest]) for digest in found}
        self.tables.append((codes_path, bounds))
        return found


def check_bytes(shards: CodecShards, *paths: Path) -> None:
    """Raise :class:`ArtifactError` unless the files match the manifest."""
    for path in paths:
        if sha256_file(path) != shards.manifest.files[path.name].sha256:
            raise ArtifactError(f"{path} has changed since it was published")


def audio_digest(line: bytes) -> str | None:
    """The audio digest in a line of a sample list, usually found without parsing the line."""
    found = DIGEST.findall(line)
    if len(found) == 1:
        return str(found[0].decode())
    digest = json.loads(line).get("original_data", {}).get("audio_sha256")
    return digest if isinstance(digest, str) else None


def count_shards(_: ArtifactStore, shards: CodecShards) -> CheckResult:
    """Compares the samples that went in with those encoded and set aside."""
    lists = shards.path.glob("shard-*.samples.jsonl")
    encoded = sum(len(path.read_bytes().splitlines()) for path in lists)
    aside = len(read_set_aside(shards.path / SET_ASIDE_FILE))
    counts = {"samples_in": shards.facts.samples_in, "encoded": encoded, "set_aside": aside}
    return CheckResult(counts["samples_in"] == encoded + aside and encoded > 0, counts)


def describe_shards(shards: CodecShards) -> Metadata:
    """Metadata: rows, columns, and the reasons of samples that were set aside."""
    return {
        "dagster/partition_row_count": shards.facts.samples,
        **column_schema(FIELDS, ABOUT_SAMPLES),
        "set_aside_reasons": set_aside_reasons(shards.path),
    }
