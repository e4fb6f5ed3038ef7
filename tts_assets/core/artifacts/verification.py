"""Verification of artifacts: the bytes of all files against the digests in the manifest.

Files are streamed and never loaded. A verified artifact is remembered in ``.cache/verified.sqlite``
by the path, size, modification time and inode of its files, so that the next verification only
reads their metadata. A disk that returns other bytes without a write changes none of these: the
command ``python -m tts_assets.doctor.scrub`` reads every byte.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from tts_assets.core.artifacts.handle import Handle, names_below, open_artifact
from tts_assets.core.artifacts.store import ArtifactStore, store_of
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import digest_of

CACHE = "verified"
UNWRITABLE = (OSError, sqlite3.Error)  # a store that this user may only read


def verify(store: ArtifactStore, handle: Handle) -> int:
    """Verify an artifact; returns the bytes that were read, 0 if it was verified before.

    Raises :class:`ArtifactError` with all problems and what to do.
    """
    key = state_of(store, handle)
    if is_remembered(store, key):
        return 0
    handle.verify()
    remember(store, key)
    return sum(entry.size for entry in handle.manifest.files.values())


def verify_folder(path: Path) -> Handle:
    """Open and verify the artifact in a folder, which may be a copy outside of any store.

    Only artifacts in a store are remembered. Raises :class:`ArtifactError` as :func:`verify` does.
    """
    handle = open_artifact(path.resolve())
    store = store_of(handle)
    own = store.folder(handle.asset, handle.partition) / handle.manifest.fingerprint
    if own == handle.path:
        verify(store, handle)
    else:
        handle.verify()
    return handle


def state_of(store: ArtifactStore, handle: Handle) -> str:
    """The key of an artifact in the cache: its path, content, and the metadata of its files."""
    states = []
    for name in sorted(names_below(handle.path)):
        path = handle.path / name
        found = path.stat() if path.exists() else path.lstat()  # a broken link is no file
        states.append([name, found.st_size, found.st_mtime_ns, found.st_ino])
    entries = {name: entry.sha256 for name, entry in handle.manifest.files.items()}
    where = os.path.relpath(handle.path, store.root)  # a store that is moved stays verified
    return f"{where} {digest_of([handle.content, entries, states])}"


def is_remembered(store: ArtifactStore, key: str) -> bool:
    """Whether an artifact in this state was verified before."""
    try:
        return bool(RecordCache(store.cache(CACHE)).get([key]))
    except UNWRITABLE:
        return False


def remember(store: ArtifactStore, key: str) -> None:
    """Record that an artifact in this state was verified."""
    with suppress(*UNWRITABLE):
        RecordCache(store.cache(CACHE)).put({key: True})


def forget(store: ArtifactStore, key: str) -> None:
    """Have an artifact verified again before its next use."""
    with suppress(*UNWRITABLE):
        RecordCache(store.cache(CACHE)).remove([key])
