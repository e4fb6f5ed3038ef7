"""Deletes old versions of artifacts that nothing refers to.

A version is deleted only if it is older than ``days``, is none of the newest ``versions`` of its
asset and partition, is neither current nor a promotion, and no version that is kept was made from
it, directly or through others. A report is a version like others: what it measured is kept with it.
Versions that the ``run.json`` of an unfinished program names are kept, too. The audio pool and the
folders of unfinished builds are not pruned.

Users are deleted before their inputs, so that no version lacks an input at any time. A version is
moved to ``.trash`` by one rename and deleted there. A process that is killed leaves each version
whole or in the trash, which the next deletion empties first.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import Field

from tts_assets.core.artifacts.handle import (
    MANIFEST,
    ArtifactError,
    InputRef,
    Manifest,
    asset_name,
    fsync,
)
from tts_assets.core.artifacts.store import FINGERPRINT_DIGITS, ArtifactStore, experiment_mark
from tts_assets.core.artifacts.verification import artifact_folders, is_current
from tts_assets.core.config import Config, ConfigError

KEPT_KINDS = ("promoted",)  # a rollback needs the promotions before
NAMED = re.compile(rf"\b[0-9a-f]{{{FINGERPRINT_DIGITS}}}\b")
DAY = 86_400.0  # seconds


class Retention(Config):
    """``[retention]``: which old versions of artifacts ``python -m tts_assets.doctor prune`` keeps.

    ``versions`` counts the current one. Experiments are counted by themselves.
    """

    days: float = Field(30.0, ge=0, description="younger versions are kept")
    versions: int = Field(3, ge=1, description="the newest of each asset and partition are kept")


@dataclass(frozen=True)
class Version:
    """One version of an artifact; ``published`` in seconds since 1970."""

    folder: Path
    manifest: Manifest
    published: float

    @property
    def name(self) -> str:
        """The asset, its partition, and the fingerprint."""
        return f"{asset_name(self.manifest)} {self.manifest.fingerprint}"

    @property
    def reference(self) -> tuple[str, str, str]:
        """What identifies it among the inputs of others."""
        return self.manifest.asset, self.manifest.partition, self.manifest.fingerprint

    def freed(self) -> int:
        """The bytes that its deletion frees: of files without other hard links."""
        found = (path.lstat() for path in self.folder.rglob("*"))
        return sum(one.st_size for one in found if one.st_nlink == 1)


def unused_versions(store: ArtifactStore, retention: Retention, now: float) -> list[Version]:
    """The versions that may be deleted, users before their inputs.

    Raises :class:`ArtifactError` if the manifest of a current artifact cannot be read: what it was
    made from is then not known.
    """
    versions = list(read_versions(store))
    by_reference = {version.reference: version for version in versions}
    inputs = {
        version.reference: [
            by_reference[key]
            for ref in version.manifest.inputs.values()
            if (key := key_of(ref)) in by_reference
        ]
        for version in versions
    }
    kept = set()
    left = [*first_kept(store, versions, retention, now)]
    while left:
        version = left.pop()
        if version.reference not in kept:
            kept.add(version.reference)
            left += inputs[version.reference]
    unused = [version for version in versions if version.reference not in kept]
    return users_first(unused, inputs)


def key_of(ref: InputRef) -> tuple[str, str, str]:
    """The :attr:`Version.reference` of an input."""
    return ref.asset, ref.partition, ref.fingerprint


def read_versions(store: ArtifactStore) -> Iterator[Version]:
    """All versions. Damaged ones that are not current are left out, and are never deleted."""
    for folder in artifact_folders(store.root, store.root):
        try:
            manifest = Manifest.from_json(folder / MANIFEST)
        except ConfigError as error:
            if is_current(folder):
                raise ArtifactError(
                    f"{folder} is current and cannot be read ({error}): materialize its asset "
                    "again before old versions are deleted"
                ) from None
            continue
        yield Version(folder, manifest, (folder / MANIFEST).stat().st_mtime)


def first_kept(
    store: ArtifactStore, versions: Sequence[Version], retention: Retention, now: float
) -> Iterator[Version]:
    """The versions that are kept for themselves, not as inputs of others."""
    named = names_in_programs(store)
    newest: dict[tuple[Path, bool], list[Version]] = defaultdict(list)
    for version in versions:
        folder = version.folder
        newest[folder.parent, experiment_mark(folder).exists()].append(version)
        young = now - version.published < retention.days * DAY
        wanted = version.manifest.kind in KEPT_KINDS or version.manifest.fingerprint in named
        if young or wanted or is_current(folder):
            yield version
    for group in newest.values():
        group.sort(key=lambda version: version.published)
        yield from group[-retention.versions :]


def names_in_programs(store: ArtifactStore) -> set[str]:
    """Everything in the configurations of unfinished programs that may be a fingerprint."""
    names: set[str] = set()
    for file in (store.root / ".work").glob("*/run.json"):
        with suppress(FileNotFoundError):  # its program has just finished
            names.update(NAMED.findall(file.read_text()))
    return names


def users_first(
    versions: Sequence[Version], inputs: Mapping[tuple[str, str, str], Sequence[Version]]
) -> list[Version]:
    """The versions, each after all of them that were made from it."""
    wanted = {version.reference for version in versions}
    users = dict.fromkeys(wanted, 0)
    for version in versions:
        for made_from in inputs[version.reference]:
            if made_from.reference in wanted:
                users[made_from.reference] += 1
    ready = [version for version in versions if not users[version.reference]]
    for version in ready:  # grows while it is read
        for made_from in inputs[version.reference]:
            if made_from.reference in wanted:
                users[made_from.reference] -= 1
                if not users[made_from.reference]:
                    ready.append(made_from)
    return ready


@dataclass(frozen=True)
class Pruned:
    """The versions with the bytes that each frees, and whether they were deleted."""

    versions: list[tuple[Version, int]]
    deleted: bool

    def report(self, now: float) -> str:
        """A line for each version, the largest first, and their sum."""
        lines = [
            f"{size / 1e9:9.3f} GB  {(now - version.published) / DAY:5.0f} days  {version.name}"
            for version, size in sorted(self.versions, key=lambda item: -item[1])
        ]
        return "\n".join([*lines, self.summary])

    @property
    def summary(self) -> str:
        """One line with the number of versions and bytes."""
        size = sum(size for _, size in self.versions) / 1e9
        verb = "deleted" if self.deleted else "can be deleted"
        return f"{len(self.versions)} old versions, {size:.3f} GB, {verb}"


def prune(
    store: ArtifactStore,
    retention: Retention,
    now: float,
    delete: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Pruned:
    """Find the versions that may be deleted; with ``delete``, delete them.

    ``now`` is in seconds since 1970. Raises :class:`ArtifactError` as :func:`unused_versions` does.
    """
    if not delete:
        found = unused_versions(store, retention, now)
        return Pruned([(version, version.freed()) for version in found], deleted=False)
    done = []
    with trash(store) as folder:
        for version in unused_versions(store, retention, now):
            size = version.freed()
            if discard(version, folder):
                done.append((version, size))
                log(f"deleted {version.name}")
    return Pruned(done, deleted=True)


@contextmanager
def trash(store: ArtifactStore) -> Iterator[Path]:
    """The empty folder ``.trash`` of the store, for one process at a time."""
    folder = store.root / ".trash"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(store.root / ".trash.lock"):
        for left in folder.iterdir():  # by a process that was killed
            shutil.rmtree(left)
        yield folder


def discard(version: Version, folder: Path) -> bool:
    """Move a version to the trash and delete it there; returns False if it is used meanwhile."""
    moved = folder / version.manifest.fingerprint
    version.folder.rename(moved)
    if is_current(version.folder):  # a run has selected it since it was found
        moved.rename(version.folder)
        return False
    fsync(version.folder.parent)
    experiment_mark(version.folder).unlink(missing_ok=True)
    shutil.rmtree(moved)
    return True
