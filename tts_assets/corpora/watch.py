"""Detects changes of a corpus since ``raw_corpus`` last scanned it, without reading audio.

A scan folds the state of every file (path, size, modification time, permissions) into one digest.
``raw_corpus`` records its scan before it reads the corpus. A later scan with another digest is a
change, even if it came during that run. Data versions decide whether the change matters. Audio
outside the folder of the corpus is scanned by the list of paths that ``raw_corpus`` recorded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import ArtifactStore, atomic_write
from tts_assets.core.config import ConfigError, digest_of
from tts_assets.corpora.corrections import Corrections
from tts_assets.corpora.discovery import Corpus
from tts_assets.corpora.readers.files import Entry


def corpus_state(entries: Iterable[Entry | SetAside], root: Path) -> tuple[str, dict[str, str]]:
    """The digest of a corpus, and the states of audio outside ``root`` by path, sorted.

    The digest covers all entries and the state of their audio, wherever it lies. It ignores other
    files of the folder and the order of the entries.
    """
    found, outside = [], {}
    for item in entries:
        state = ""
        if isinstance(item, Entry):
            state = file_state(item.file)
            if root not in item.file.parents:
                outside[str(item.file)] = state
        line = f"{item} {state}".encode(errors="surrogateescape")
        found.append(hashlib.sha256(line).digest())
    return hashlib.sha256(b"".join(sorted(found))).hexdigest(), dict(sorted(outside.items()))


def file_state(file: os.DirEntry[str] | Path) -> str:
    """Size, modification time and permissions of a file, or the errno if it has no state."""
    try:
        stat = file.stat()
    except OSError as error:
        return f"errno {error.errno}"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_mode} {stat.st_uid} {stat.st_gid}"


def walk(root: Path, after: str = "") -> Iterator[tuple[str, str]]:
    """Yield the relative path and state of every file below ``root``, or of the file ``root``.

    Entries are sorted by name: an interrupted walk resumes behind the path ``after``. Links to
    folders are followed, except in cycles.
    """
    if root.is_file():
        if not after:
            yield root.name, file_state(root)
        return
    yield from _walk(str(root), "", after.split("/") if after else [], (os.path.realpath(root),))


def _walk(
    folder: str, prefix: str, after: list[str], above: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """``after`` has the parts of the path below ``folder``; ``above`` the real parent folders."""
    try:
        with os.scandir(folder) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield prefix.rstrip("/"), f"errno {error.errno}"
        return
    first, *rest = after or [""]
    for entry in here:
        name = entry.name
        if name < first or (name == first and not rest):
            continue
        if not entry.is_dir():
            yield prefix + name, file_state(entry)
            continue
        real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{name}"
        if real not in above:
            below = rest if name == first else []
            yield from _walk(entry.path, f"{prefix}{name}/", below, (*above, real))


DIGITS = 20  # of a recorded digest: 80 bits


@dataclass
class Scan:
    """A scan of one corpus: the digest so far, and the last path."""

    digest: str
    after: str = ""

    @classmethod
    def begin(cls, corpus: Corpus) -> Self:
        """A new scan. The digest includes the configuration, which is part of the corpus."""
        return cls(digest_of({"config": corpus.config, "root": corpus.path})[:DIGITS])

    def folder(self, root: Path, deadline: float = math.inf) -> bool:
        """Scan the files below ``root``. Returns False if the deadline passed before the end."""
        return self.after.startswith("/") or self._fold(walk(root, self.after), deadline)

    def outside(self, files: Iterable[tuple[str, str]], deadline: float = math.inf) -> bool:
        """Scan absolute paths with their states, sorted. Returns False if the deadline passed."""
        return self._fold(files, deadline)

    def _fold(self, files: Iterable[tuple[str, str]], deadline: float) -> bool:
        for path, state in files:
            line = f"{self.digest} {state} {path}".encode(errors="surrogateescape")
            self.digest = hashlib.sha256(line).hexdigest()[:DIGITS]
            self.after = path
            if time.monotonic() > deadline:
                return False
        return True


@dataclass(frozen=True)
class RecordedScan:
    """The last complete scan by ``raw_corpus``, and the audio paths outside the corpus folder."""

    digest: str = ""
    outside: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: ArtifactStore, name: str) -> Self:
        """The record of a corpus; an empty one if there is none or it is unreadable."""
        try:
            values = json.loads(_record(store, name).read_text())
            return cls(values["digest"], tuple(values["outside"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def states(self, after: str) -> Iterator[tuple[str, str]]:
        """The present states of the audio outside; resumes behind ``after`` if it is absolute."""
        left = (path for path in self.outside if path > after or not after.startswith("/"))
        return ((path, file_state(Path(path))) for path in left)

    def record(self, store: ArtifactStore, name: str) -> None:
        """Write the record of a corpus."""
        with atomic_write(_record(store, name)) as aside:
            aside.write_text(json.dumps(asdict(self)))


def _record(store: ArtifactStore, name: str) -> Path:
    return store.folder("raw_corpus", name) / "seen.json"


@dataclass
class Watch:
    """The state of the watcher between rounds. Its size does not depend on the number of files.

    ``requested`` has the digest of the last reported change by corpus, so that a change that
    cannot be indexed is reported once, and ``corrected`` that of its corrections. ``unfinished``
    has the scans that ran out of time, and ``first`` the corpus that begins the next round.
    """

    requested: dict[str, str] = field(default_factory=dict)
    corrected: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, list[str]] = field(default_factory=dict)
    first: str = ""

    @classmethod
    def load(cls, cursor: str | None) -> Self:
        """The inverse of :meth:`dump`. A cursor of another version is dropped."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (TypeError, ValueError):
            return cls()

    def dump(self) -> str:
        """The state as JSON, for a sensor's cursor."""
        return json.dumps(asdict(self), sort_keys=True)

    def round(
        self, corpora: Mapping[str, Corpus], store: ArtifactStore, seconds: float
    ) -> dict[str, str]:
        """Scan the corpora for up to ``seconds``. Returns the digests of those that changed.

        The next round starts with the corpora that this round did not reach, and resumes
        unfinished scans. Every scan covers every file, so no change is missed.
        """
        for memory in (self.requested, self.corrected, self.unfinished):
            for gone in set(memory) - set(corpora):
                del memory[gone]
        deadline = time.monotonic() + seconds
        names = sorted(corpora)
        turn = sum(name < self.first for name in names)
        changed = {}
        self.first = ""
        for name in (ordered := names[turn:] + names[:turn]):
            seen = RecordedScan.of(store, name)
            digest = self._scan(name, corpora[name], seen, deadline)
            if digest is not None and self._is_new_change(name, digest, seen):
                changed[name] = digest
            if time.monotonic() > deadline:
                self.first = ordered[(ordered.index(name) + 1) % len(ordered)]
                break
        return changed

    def corrections(
        self, corpora: Mapping[str, Corpus], store: ArtifactStore, project: Path
    ) -> tuple[dict[str, str], list[str]]:
        """The digests of corrections that the samples of their corpora do not have yet.

        ``project`` is the folder of the project file. Changes that :attr:`corrected` has are left
        out. Returns the messages of files with errors, too.
        """
        changed, problems = {}, []
        for name in corpora:
            try:
                layer = Corrections.of(project, name)
            except ConfigError as error:
                problems.append(str(error))
                continue
            digest = layer.identity().get("corrections", "")[:DIGITS]
            if not layer.pending(store, name):
                self.corrected.pop(name, None)
            elif self.corrected.get(name) != digest:
                changed[name] = digest
        return changed, problems

    def _scan(self, name: str, corpus: Corpus, seen: RecordedScan, deadline: float) -> str | None:
        """The digest of a complete scan, or None if the deadline passed."""
        unfinished = self.unfinished.pop(name, None)
        scan = Scan(*unfinished) if unfinished else Scan.begin(corpus)
        if scan.folder(corpus.path, deadline) and scan.outside(seen.states(scan.after), deadline):
            return scan.digest
        self.unfinished[name] = [scan.digest, scan.after]
        return None

    def _is_new_change(self, name: str, digest: str, seen: RecordedScan) -> bool:
        if digest == seen.digest:
            self.requested.pop(name, None)
            return False
        return self.requested.get(name) != digest


def access_problem(corpus: Corpus) -> str | None:
    """The error and remedy of a corpus that cannot be scanned; None if it can."""
    try:
        if corpus.path.is_file():
            corpus.path.open("rb").close()
        else:
            os.scandir(corpus.path).close()
    except OSError as error:
        return (
            f"{error.strerror}: {corpus.path}; mount it, correct the path, or delete the partition"
        )
    return None
