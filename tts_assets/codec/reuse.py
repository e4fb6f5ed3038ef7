"""Codes of clips that an earlier artifact of the same codec holds: they are not made again.

Published ``codec_shards`` are the cache; the key is the audio's SHA-256. Codes are taken only
from files that still have the bytes of their manifest, so that damage does not spread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tts_assets.artifacts import ArtifactError, CodecShards, sha256_file

ShardCodes = NDArray[np.integer[Any]]  # of the type that holds the codebook
# Quotes within JSON strings are escaped, so this can only be a key and its value.
DIGEST = re.compile(rb'"audio_sha256": ?"([0-9a-f]{64})"')


class EarlierCodes:
    """The codes of those clips of ``wanted`` that lie in one of ``folders``, by audio digest.

    ``folders`` are artifacts of the kind ``codec_shards``, looked at in their order until all is
    found. One of another codec is passed over; one that is damaged, too, and ``note`` is told.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        codec_content: str,
        wanted: Iterable[str],
        note: Callable[[str], None],
    ) -> None:
        self.tables: list[tuple[ShardCodes, NDArray[np.int64]]] = []
        self.places: dict[str, tuple[int, int]] = {}  # digest: table, row
        missing = set(wanted)
        for folder in folders:
            try:
                shards = CodecShards.open(folder)
            except ArtifactError as error:
                note(f"no codes are taken from it: {error}")
                continue
            if shards.facts.codec != codec_content:
                continue
            for number in range(shards.facts.shards):
                if not missing:
                    return
                try:
                    missing -= self._add(shards, number, missing)
                except (ArtifactError, ValueError) as error:
                    note(f"no codes are taken from it: {error}")

    def get(self, digest: str | None) -> ShardCodes | None:
        """The codes (codes,) of a clip, a view into the mapped file."""
        if digest not in self.places:
            return None
        table, row = self.places[digest]
        codes, bounds = self.tables[table]
        return codes[bounds[row] : bounds[row + 1]]

    def _add(self, shards: CodecShards, number: int, wanted: set[str]) -> set[str]:
        """Note where a shard has wanted clips; returns their digests."""
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
        codes = np.load(codes_path, mmap_mode="r").view(np.ndarray)
        bounds = np.append(np.load(index_path), len(codes))
        fits = len(bounds) == len(lines) + 1 and np.all(np.diff(bounds) > 0)
        if not fits or codes.max() >= shards.facts.codebook_size:
            raise ArtifactError(f"{codes_path}, its index and its samples do not fit together")
        self.places |= {digest: (len(self.tables), rows[digest]) for digest in found}
        self.tables.append((codes, bounds))
        return found


def check_bytes(shards: CodecShards, *paths: Path) -> None:
    """Raise :class:`ArtifactError` unless the files are what the manifest says."""
    for path in paths:
        if sha256_file(path) != shards.manifest.files[path.name].sha256:
            raise ArtifactError(f"{path} has changed since it was published")


def audio_digest(line: bytes) -> str | None:
    """The audio's digest that a line of a sample list names, mostly without parsing it."""
    found = DIGEST.findall(line)
    if len(found) == 1:
        return str(found[0].decode())
    digest = json.loads(line).get("original_data", {}).get("audio_sha256")
    return digest if isinstance(digest, str) else None
