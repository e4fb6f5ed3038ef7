"""``raw_corpus``: every utterance of a corpus as a row, with its audio opened and measured once.

The rows' order and content depend on the corpus alone: not on file times, reading order or the
number of threads. What cannot be used is set aside with its reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tts_assets.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.artifacts import ArtifactStore, CorpusFacts, RawCorpus, SpeechSegments
from tts_assets.config import ConfigError
from tts_assets.corpora.audio import BrokenAudio, read_clip
from tts_assets.corpora.config import CorpusConfig
from tts_assets.corpora.readers import READERS
from tts_assets.corpora.readers.entry import Entry

UTTERANCES_FILE = "utterances.parquet"
ID_DIGITS = 16  # 64 bits of the audio's SHA-256: no collision below a billion utterances
THREADS = 4  # decoding releases the GIL

SCHEMA = {
    "id": pl.String,
    "audio": pl.String,  # relative to the corpus root where it lies below it, or to the pool
    "pooled": pl.Boolean,  # the audio lies in the audio pool (see audio_pool.py)
    "audio_sha256": pl.String,
    "duration": pl.Float64,  # seconds
    "sample_rate": pl.Int32,  # Hz
    "channels": pl.Int16,
    "speaker": pl.String,
    "language": pl.String,
    "text": pl.String,  # raw
    "licence": pl.String,
    "extra": pl.String,  # JSON: further fields of the sample schema
}


@dataclass(frozen=True)
class Utterance:
    """One row of ``utterances.parquet``; see SCHEMA."""

    id: str
    audio: str
    pooled: bool
    audio_sha256: str
    duration: float
    sample_rate: int
    channels: int
    speaker: str
    language: str
    text: str
    licence: str
    extra: str

    def path(self, facts: CorpusFacts) -> Path:
        """Where the audio lies; ``facts`` of the corpus."""
        return Path(facts.audio_pool if self.pooled else facts.root) / self.audio


def read_entries(root: Path, config: CorpusConfig) -> list[Entry | SetAside]:
    """All that the corpus' reader finds. Raises ConfigError if the corpus is not there at all."""
    try:
        return list(READERS[config.reader](root, config))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"the {config.reader} reader finds no corpus at {root}: {error}; mend path or reader"
        ) from None


def index_corpus(
    name: str, root: Path, config: CorpusConfig, store: ArtifactStore, result: Path
) -> CorpusFacts:
    """Write ``utterances.parquet`` and ``set_aside.jsonl`` into ``result``; audio that is no file
    of its own becomes one in the ``store``'s pool."""
    entries = read_entries(root, config)
    root = root if root.is_dir() else root.parent  # a corpus may be one samples file
    with ThreadPoolExecutor(THREADS) as pool:
        measured = list(pool.map(lambda item: measure(root, item), entries))
    utterances, set_aside = separate(measured)
    frame = pl.DataFrame([vars(row) for row in utterances], schema=SCHEMA)
    frame.write_parquet(result / UTTERANCES_FILE)
    write_set_aside(result / SET_ASIDE_FILE, set_aside)
    return CorpusFacts(
        corpus=name,
        root=str(root),
        audio_pool=str(store.audio_pool),
        language=config.language,
        licence=config.licence,
        utterances=len(utterances),
        set_aside=len(set_aside),
        hours=round(sum(row.duration for row in utterances) / 3600, 6),
        speakers=len({row.speaker for row in utterances}),
    )


def measure(root: Path, item: Entry | SetAside) -> Utterance | SetAside:
    """Open an entry's audio: its digest, duration, rate and channels, or why not."""
    if isinstance(item, SetAside):
        return item
    try:
        clip = read_clip(item.audio)
        digest = hashlib.sha256(item.audio.read_bytes()).hexdigest()
    except BrokenAudio as error:
        return SetAside(item.where, error.reason, f"{item.audio.name} {error.detail}".strip())
    except PermissionError:
        return SetAside(item.where, "no permission to read", str(item.audio))
    below = item.audio.is_relative_to(root)
    return Utterance(
        id=digest[:ID_DIGITS],
        audio=str(item.audio.relative_to(root) if below else item.audio),
        pooled=False,
        audio_sha256=digest,
        duration=round(clip.seconds, 6),
        sample_rate=clip.rate,
        channels=clip.channels,
        speaker=item.speaker,
        language=item.language,
        text=item.text,
        licence=item.licence,
        extra=json.dumps(item.extra, sort_keys=True, ensure_ascii=False),
    )


def separate(
    measured: Iterable[Utterance | SetAside],
) -> tuple[list[Utterance], list[SetAside]]:
    """Utterances by id, each audio once (the first by path), and the rest with its reason."""
    rows = [item for item in measured if isinstance(item, Utterance)]
    set_aside = [item for item in measured if isinstance(item, SetAside)]
    kept: dict[str, Utterance] = {}
    for row in sorted(rows, key=lambda row: (row.id, row.audio, row.text)):
        first = kept.setdefault(row.id, row)
        if first is not row:
            detail = f"the same bytes as {first.audio}"
            set_aside.append(SetAside(row.audio, "duplicate audio", detail))
    return list(kept.values()), set_aside


def utterances(corpus: RawCorpus | SpeechSegments) -> Iterator[Utterance]:
    """The rows of a corpus, by id."""
    for row in pl.read_parquet(corpus.path / UTTERANCES_FILE).iter_rows(named=True):
        yield Utterance(**row)
