"""Where the audio of published samples lies.

Artifacts name audio relative to the folder of its corpus, or to the audio pool as ``pool:<name>``,
so that their digests stay the same when the corpus, the storage or the checkout is moved. The
folders are looked up when audio is read: that of the corpus in the current ``raw_corpus``, the pool
in the storage that holds the artifact.

``python -m tts_assets.corpora.audio_paths kept.jsonl`` prints a sample list with absolute paths,
for other programs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import polars as pl

from tts_assets.core.artifacts import (
    MANIFEST,
    ArtifactError,
    ArtifactStore,
    RawCorpus,
    open_artifact,
    store_of,
)
from tts_assets.corpora.samples import Sample, read_samples

POOL = "pool:"  # before a name in the audio pool


@dataclass(frozen=True)
class AudioFolders:
    """The folder of a corpus and the audio pool; None where they are unknown."""

    corpus: str = ""
    root: Path | None = None
    pool: Path | None = None

    @classmethod
    def of_corpus(cls, corpus: RawCorpus, pool: Path) -> Self:
        """The folders of an index that was just read."""
        return cls(corpus.partition, Path(corpus.facts.root), pool)

    @classmethod
    def of_store(cls, store: ArtifactStore, corpus: str) -> Self:
        """The folders of a corpus in ``store``."""
        try:
            index = store.current(RawCorpus.kind, corpus)
        except ArtifactError:  # imported arrays have no index
            return cls(corpus, None, store.audio_pool)
        assert isinstance(index, RawCorpus)
        return cls.of_corpus(index, store.audio_pool)

    @classmethod
    def of(cls, path: Path) -> Self:
        """The folders of a file or folder of an artifact.

        Paths in a file that belongs to no artifact are relative to its folder.
        """
        folder = (path if path.is_dir() else path.parent).resolve()
        if not (folder / MANIFEST).is_file():
            return cls(root=folder)
        handle = open_artifact(folder)
        return cls.of_store(store_of(handle), handle.partition)

    @cached_property
    def folder(self) -> Path:
        """The folder of the corpus. Raises FileNotFoundError with the remedy if it is not there."""
        index = f"materialize raw_corpus[{self.corpus}]"
        if self.root is None:
            raise FileNotFoundError(f"the folder of corpus {self.corpus!r} is unknown: {index}")
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"corpus {self.corpus!r} was indexed at {self.root}, which does not exist: restore "
                f"it, or write the present folder to corpora.{self.corpus}.path and {index}"
            )
        return self.root

    def path(self, name: str) -> Path:
        """The path of a ``wav_path``. Raises FileNotFoundError without the corpus folder."""
        if name.startswith("/"):
            return Path(name)
        if not name.startswith(POOL):
            return self.folder / name
        if self.pool is None:
            raise FileNotFoundError(f"{name}: only a list in a storage has an audio pool")
        return self.pool / name.removeprefix(POOL)

    def existing(self, name: str) -> Path:
        """The path of a ``wav_path`` that exists. Raises FileNotFoundError with the remedy."""
        path = self.path(name)
        if path.is_file():
            return path
        where = "the audio pool" if name.startswith(POOL) else "its folder"
        raise FileNotFoundError(
            f"{path}, a clip of corpus {self.corpus!r}, is gone from {where}: restore it, or "
            f"materialize raw_corpus[{self.corpus}] and its downstream assets again"
        )

    def paths(self, column: str) -> pl.Expr:
        """:meth:`path` of a column."""
        name = pl.col(column)
        pooled = pl.concat_str(pl.lit(f"{self.pool}/"), name.str.strip_prefix(POOL))
        below = pl.concat_str(pl.lit(f"{self.root}/"), name)
        own = pl.when(name.str.starts_with("/")).then(name).otherwise(below)
        return pl.when(name.str.starts_with(POOL)).then(pooled).otherwise(own)


def published_names() -> pl.Expr:
    """The ``wav_path`` of rows of an index, from their columns ``audio`` and ``pooled``."""
    audio = pl.col("audio")
    pooled = pl.concat_str(pl.lit(POOL), audio)
    own = pl.concat_str(pl.lit("./"), audio)  # a file of a corpus that looks like a pooled one
    outside = pl.when(audio.str.starts_with(POOL)).then(own).otherwise(audio)
    return pl.when("pooled").then(pooled).otherwise(outside)


def located_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a published file with absolute paths.

    Raises FileNotFoundError with the remedy if the folder of the corpus is not there.
    """
    folders = AudioFolders.of(path)
    for sample in read_samples(path):
        yield sample.model_copy(update={"wav_path": str(folders.path(sample.wav_path))})


def main(argv: list[str] | None = None) -> None:
    """Print sample lists with absolute paths; all other fields stay as they are."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("samples", type=Path, nargs="+", help="a kept.jsonl or *samples.jsonl")
    for path in parser.parse_args(argv).samples:
        folders = AudioFolders.of(path)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                sample = json.loads(line)
                sample["wav_path"] = str(folders.path(sample["wav_path"]))
                print(json.dumps(sample, ensure_ascii=False))


if __name__ == "__main__":
    main()
