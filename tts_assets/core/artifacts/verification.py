"""Verification of artifacts: the bytes of all files against the digests in the manifest.

Files are streamed and never loaded. A verified artifact is remembered in ``.cache/verified.sqlite``
by the path, size, modification time and inode of its files, so that the next verification only
reads their metadata. A disk that returns other bytes without a write changes none of these:
:func:`scrub`, the command ``python -m tts_assets.doctor scrub``, reads every byte of a store.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import polars.selectors as cs
from tqdm import tqdm

from tts_assets.core.artifacts.handle import (
    ArtifactError,
    Handle,
    InputRef,
    asset_name,
    find_problems,
    names_below,
    open_artifact,
    sha256_file,
)
from tts_assets.core.artifacts.store import FINGERPRINT, ArtifactStore, store_of
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


NO_ARTIFACTS = ("audio", "wandb")  # folders of the storage, beside those that start with a dot
POOL = "the audio pool"
Users = Mapping[InputRef, list[str]]


@dataclass
class Scrubbed:
    """The number and bytes of the artifacts that were read, and their problems by asset."""

    artifacts: int = 0
    size: int = 0
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def report(self) -> str:
        """All problems, by asset."""
        lines = []
        for asset, problems in self.problems.items():
            lines += [asset, *(f"  {problem}" for problem in problems)]
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        """One line for the terminal and for Dagster."""
        read = f"{self.artifacts} artifacts, {self.size / 1e9:.2f} GB"
        if not self.problems:
            return f"{read}: all files are as they were published"
        return f"{read}: {len(self.problems)} damaged: {', '.join(self.problems)}"


def scrub(store: ArtifactStore, asset: str = "") -> Scrubbed:
    """Read all artifacts below the key ``asset``; empty: of the whole store.

    Damaged artifacts are refused at their next use, also if the metadata of their files is that of
    an earlier verification.
    """
    folders = list(artifact_folders(store.root, store.root / asset))
    users = users_of(artifact_folders(store.root, store.root))
    found = Scrubbed()
    for folder in tqdm(folders, desc="scrub", unit="artifact", disable=not sys.stderr.isatty()):
        found.artifacts += 1
        try:
            handle = open_artifact(folder)
        except ArtifactError as error:
            where = str(folder.parent.relative_to(store.root))
            hint = "" if "materialize" in str(error) else "; delete the folder, materialize again"
            found.problems[where].append(f"{error}{hint}")
            continue
        found.size += sum(entry.size for entry in handle.manifest.files.values())
        key = state_of(store, handle)
        problems = find_problems(handle, remedy_of(handle, users))
        if problems:
            found.problems[asset_name(handle.manifest)] += problems
        (forget if problems else remember)(store, key)
    if not asset:
        scrub_pool(store, folders, found)
    return found


def scrub_pool(store: ArtifactStore, folders: Sequence[Path], found: Scrubbed) -> None:
    """Compare the files of the audio pool with the digests in their names.

    The remedy names the current artifacts of ``folders`` whose tables have the file. When they are
    built again, they write it again.
    """
    files = [path for path in sorted(store.audio_pool.glob("*/*")) if path.name[0] != "."]
    for path in tqdm(files, desc="audio", unit="file", disable=not sys.stderr.isatty()):
        try:
            found.size += path.stat().st_size
            problem = "" if sha256_file(path) == path.name.split(".")[0] else "has changed"
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        if problem:
            owners = list(owners_of(path, folders))
            delete = ", ".join(["this file", *(f"the folder {owner.path}" for owner in owners)])
            again = ", ".join(asset_name(owner.manifest) for owner in owners)
            follow = f" and materialize {again} again" if again else ""
            found.problems[POOL].append(f"{path} {problem}; delete {delete}{follow}")


def owners_of(path: Path, folders: Sequence[Path]) -> Iterator[Handle]:
    """The current artifacts with a table that has a file of the audio pool."""
    name = f"{path.parent.name}/{path.name}"
    for folder in filter(is_current, folders):
        tables = folder.glob("*.parquet")
        with suppress(ArtifactError, pl.exceptions.PolarsError):
            if any(has_text(table, name) for table in tables):
                yield open_artifact(folder)


def has_text(table: Path, text: str) -> bool:
    """Whether a column of a Parquet file has a cell that is ``text``."""
    cells = pl.scan_parquet(table).select(pl.any_horizontal(cs.string() == text).any())
    return bool(cells.collect().item())


def artifact_folders(root: Path, below: Path) -> Iterator[Path]:
    """The folders of all artifacts below ``below``, sorted."""
    for parent, folders, _ in os.walk(below):
        here = Path(parent)
        yield from sorted(here / name for name in folders if FINGERPRINT.fullmatch(name))
        folders[:] = sorted(
            name
            for name in folders
            if not FINGERPRINT.fullmatch(name)
            and not name.startswith(".")
            and not (here == root and name in NO_ARTIFACTS)
        )


def users_of(folders: Iterable[Path]) -> Users:
    """The names of the current artifacts that were made from each artifact."""
    users: dict[InputRef, list[str]] = defaultdict(list)
    for folder in folders:
        if is_current(folder):
            try:
                manifest = open_artifact(folder).manifest
            except ArtifactError:
                continue
            for reference in manifest.inputs.values():
                users[reference].append(asset_name(manifest))
    return users


def is_current(folder: Path) -> bool:
    """Whether the link ``current`` selects this artifact."""
    return (folder.parent / "current").resolve() == folder.resolve()


def remedy_of(handle: Handle, users: Users) -> str:
    """What to do if ``handle`` is damaged: old versions from which nothing is made are deleted."""
    if is_current(handle.path):
        return handle.remedy
    if made := users.get(handle.reference()):
        return f"{handle.remedy}, then {', '.join(made)}"
    return f"this is an old version that nothing current was made from: delete {handle.path}"
