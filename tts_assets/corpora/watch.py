"""Whether a corpus changed since ``raw_corpus`` last looked at it, without reading any audio.

A look folds the state of every file (``listing.py``) into one digest. ``raw_corpus`` records what
it saw, before it reads; whoever looks later and sees something else has found a change, whether
it came before, during or after that run. Whether the change matters is decided from content.

Audio outside the corpus' folder is part of a look by the list that ``raw_corpus`` recorded.

What is known of a corpus' files without reading them: paths, sizes, times, who may read.
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
from tts_assets.core.artifacts import ArtifactStore, written_aside
from tts_assets.core.config import digest_of
from tts_assets.corpora.discovery import Corpus
from tts_assets.corpora.readers.files import Entry


def survey(entries: Iterable[Entry | SetAside], root: Path) -> tuple[str, dict[str, str]]:
    """Digest of all that a reader found and of the state of the audio it names; and the states of
    the audio that a walk through the corpus ``root`` does not see, by path, sorted.

    The digest sees audio outside the corpus' folder, too, and overlooks files that are no part of
    it. The order of the entries does not count.
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
    """What changes with a file's content, and with who may read it; or why there is no telling."""
    try:
        stat = file.stat()
    except OSError as error:
        return f"errno {error.errno}"
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_mode} {stat.st_uid} {stat.st_gid}"


def walk(root: Path, after: str = "") -> Iterator[tuple[str, str]]:
    """Relative path and state of every file below ``root`` (or of the one file ``root``).

    Folders' entries come sorted by name, so that a walk which was broken off goes on behind the
    path ``after``. Links to folders are followed, but not in circles.
    """
    if root.is_file():
        if not after:
            yield root.name, file_state(root)
        return
    yield from _walk(str(root), "", after.split("/") if after else [], (os.path.realpath(root),))


def _walk(
    folder: str, prefix: str, after: list[str], above: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """``after``: the parts of the path below ``folder``; ``above``: the folders on the way."""
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


DIGITS = 20  # of a digest that is kept: 80 bits


@dataclass
class Look:
    """A look at one corpus: the digest of what was seen so far, and the last path seen."""

    digest: str
    after: str = ""

    @classmethod
    def begin(cls, corpus: Corpus) -> Self:
        """A corpus that is declared in another way is another corpus."""
        return cls(digest_of({"config": corpus.config, "root": corpus.path})[:DIGITS])

    def folder(self, root: Path, deadline: float = math.inf) -> bool:
        """Look at the files below ``root``; whether that was all of them."""
        return self.after.startswith("/") or self._fold(walk(root, self.after), deadline)

    def outside(self, files: Iterable[tuple[str, str]], deadline: float = math.inf) -> bool:
        """Look at absolute paths and their states, sorted; whether that was all of them."""
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
class Seen:
    """What ``raw_corpus`` saw when it was last materialized: a whole look, and which of the
    corpus' audio lies outside its folder."""

    digest: str = ""
    outside: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: ArtifactStore, name: str) -> Self:
        """Nothing, if ``raw_corpus`` never looked, or left a record that is no use."""
        try:
            values = json.loads(_record(store, name).read_text())
            return cls(values["digest"], tuple(values["outside"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def states(self, after: str) -> Iterator[tuple[str, str]]:
        """The audio outside as it is now, from behind ``after`` on if that lies outside, too."""
        left = (path for path in self.outside if path > after or not after.startswith("/"))
        return ((path, file_state(Path(path))) for path in left)

    def record(self, store: ArtifactStore, name: str) -> None:
        with written_aside(_record(store, name)) as aside:
            aside.write_text(json.dumps(asdict(self)))


def _record(store: ArtifactStore, name: str) -> Path:
    return store.folder("raw_corpus", name) / "seen.json"


@dataclass
class Watch:
    """What the watcher remembers between two rounds; bounded, whatever the number of files.

    ``requested``: by corpus the digest of the change that was last reported, so that a change
    that cannot be indexed is not reported again and again. ``unfinished``: the looks that time
    ended. ``first``: the corpus that a round begins with, after one that time ended.
    """

    requested: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, list[str]] = field(default_factory=dict)
    first: str = ""

    @classmethod
    def load(cls, cursor: str | None) -> Self:
        """What :meth:`dump` wrote; a cursor of another version is forgotten, which costs a look."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (TypeError, ValueError):
            return cls()

    def dump(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def round(
        self, corpora: Mapping[str, Corpus], store: ArtifactStore, seconds: float
    ) -> dict[str, str]:
        """Look at each corpus, as far as the time goes; the digests of those that changed.

        The next round goes on with the corpora that this one did not come to, and comes back to
        those that it did not finish. Every look sees every file, so no change is missed.
        """
        for memory in (self.requested, self.unfinished):
            for gone in set(memory) - set(corpora):
                del memory[gone]
        deadline = time.monotonic() + seconds
        names = sorted(corpora)
        turn = sum(name < self.first for name in names)
        changed = {}
        self.first = ""
        for name in (ordered := names[turn:] + names[:turn]):
            seen = Seen.of(store, name)
            digest = self._look(name, corpora[name], seen, deadline)
            if digest is not None and self._is_news(name, digest, seen):
                changed[name] = digest
            if time.monotonic() > deadline:
                self.first = ordered[(ordered.index(name) + 1) % len(ordered)]
                break
        return changed

    def _look(self, name: str, corpus: Corpus, seen: Seen, deadline: float) -> str | None:
        """The digest of a whole look, or None if time ended it."""
        begun = self.unfinished.pop(name, None)
        look = Look(*begun) if begun else Look.begin(corpus)
        if look.folder(corpus.path, deadline) and look.outside(seen.states(look.after), deadline):
            return look.digest
        self.unfinished[name] = [look.digest, look.after]
        return None

    def _is_news(self, name: str, digest: str, seen: Seen) -> bool:
        if digest == seen.digest:
            self.requested.pop(name, None)
            return False
        return self.requested.get(name) != digest


def obstacle(corpus: Corpus) -> str | None:
    """Why a corpus cannot be looked at, with the remedy; None if it can."""
    try:
        if corpus.path.is_file():
            corpus.path.open("rb").close()
        else:
            os.scandir(corpus.path).close()
    except OSError as error:
        return f"{error.strerror}: {corpus.path}; mount it, mend the path, or delete the partition"
    return None
