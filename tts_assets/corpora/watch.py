"""Whether a corpus changed since ``raw_corpus`` last looked at it, without reading any audio.

A look folds the state of every file (``listing.py``) into one digest. ``raw_corpus`` records what
it saw, before it reads; whoever looks later and sees something else has found a change, whether
it came before, during or after that run. Whether the change matters is decided from content.

Audio outside the corpus' folder is part of a look by the list that ``raw_corpus`` recorded.
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

from tts_assets.artifacts import ArtifactStore, written_aside
from tts_assets.config import digest_of
from tts_assets.corpora.discovery import Corpus
from tts_assets.corpora.listing import file_state, walk

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
