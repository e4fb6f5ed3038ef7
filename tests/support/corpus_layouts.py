"""Corpora in several layouts, and their index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import soundfile

from tts_assets.core.accounting import SetAside, read_set_aside
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.audio import read_clip
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.index import index_corpus

NOBODY = 65_534


def put(source: Path, target: Path) -> None:
    """A clip in the format that ``target``'s suffix names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    clip = read_clip(source)
    soundfile.write(target, clip.wave, clip.rate)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def index(
    root: Path, result: Path, reader: str = "jsonl", **fields: Any
) -> tuple[pl.DataFrame, list[SetAside]]:
    """The index of a corpus, written to ``result``, and what was set aside."""
    result.mkdir(parents=True)
    config = CorpusConfig.model_validate(
        {"path": root, "reader": reader, "language": "en", **fields}
    )
    store = ArtifactStore(result.parent / "storage")
    facts = index_corpus("clips", root.resolve(), config, store, result)
    rows = pl.read_parquet(result / "utterances.parquet")
    set_aside = read_set_aside(result / "set_aside.jsonl")
    assert (facts.utterances, facts.set_aside) == (len(rows), len(set_aside))
    return rows, set_aside


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root can read files of any mode; in this block the process is the user nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
