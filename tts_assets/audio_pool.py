"""Audio that the pipeline cut or extracted itself: write-once files named by their SHA-256.

Recordings that lie on disk as one file an utterance are used where they lie. Audio inside a
Parquet file, or a part of a longer recording, becomes a file here, once for all versions of its
corpus: an index that changes in one row writes one file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tts_assets.artifacts import written_aside


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
