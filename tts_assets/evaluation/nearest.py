"""The training utterances that are most similar to a synthesis: by text, and by voice.

By text, all training utterances are compared. By voice, at most :data:`MOST_CLIPS` of them are, and
their embeddings are cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from rapidfuzz import fuzz
from rapidfuzz.process import cdist
from rapidfuzz.utils import default_process

from tts_assets.audio_models.speaker_similarity import Embedding, SpeakerEmbedder
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import BrokenAudio, read_clip
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import Config, digest_of
from tts_assets.corpora.samples import AudioFolders
from tts_assets.speakers.config import encoder_digest, resolve

BATCH = 50_000  # training utterances that are compared at once; 20 MB for 100 texts
MOST_CLIPS = 200  # that are compared by voice; about 6 s of one core with the default encoder
DIGITS = 4  # of an embedding in the cache
SCHEMA = {"id": pl.String, "transcript": pl.String, "wav_path": pl.String}


class Nearest(Config):
    """The training utterance that is most similar to a text or to a synthesis.

    ``similarity``: 1 for equal texts, or the cosine of two speaker embeddings. ``samples``: the
    list that has the utterance, in the storage.
    """

    id: str
    transcript: str
    similarity: float
    samples: str


@dataclass(frozen=True)
class Candidate:
    """A training utterance that is compared by voice."""

    id: str
    transcript: str
    samples: str
    audio: Path


def nearest_texts(texts: Mapping[str, str], training: Iterable[Path]) -> dict[str, Nearest]:
    """By id, the training utterance with the most similar text; empty without ``training``.

    The similarity is rapidfuzz's ratio of letters, without case and punctuation. The lists are read
    in batches of :data:`BATCH` utterances.
    """
    found: dict[str, Nearest] = {}
    for path in training:
        rows = pl.read_ndjson(path, schema={"id": pl.String, "transcript": pl.String})
        for batch in rows.iter_slices(BATCH):
            scores = cdist(
                list(texts.values()),
                batch["transcript"].to_list(),
                scorer=fuzz.ratio,
                processor=default_process,
            )
            for key, row in zip(texts, scores, strict=True):
                best = int(row.argmax())
                score = round(float(row[best]) / 100, 3)
                if key not in found or score > found[key].similarity:
                    own = batch.row(best, named=True)
                    found[key] = Nearest(**own, similarity=score, samples=in_storage(path))
    return found


def nearest_voices(
    syntheses: Mapping[str, Path], training: Sequence[Path], encoder: str, cache: Path
) -> dict[str, Nearest]:
    """By key, the training utterance whose voice is most similar; empty without ``training``.

    ``syntheses``: audio files by key. ``encoder``: ``[evaluation] speaker_encoder``. Files without
    enough speech, and training clips that no longer exist, are left out.
    """
    clips = candidates(training)
    embedder = CachedEmbedder(encoder, RecordCache(cache))
    known = embedder([clip.audio for clip in clips])
    usable = [(clip, known[clip.audio]) for clip in clips if clip.audio in known]
    if not usable:
        return {}
    voices = np.stack([vector for _, vector in usable])
    found = {}
    of_syntheses = embedder(list(syntheses.values()))
    for key, path in syntheses.items():
        if path in of_syntheses:
            cosines = voices @ of_syntheses[path]
            best = int(cosines.argmax())
            clip, cosine = usable[best][0], round(float(cosines[best]), 3)
            found[key] = Nearest(
                id=clip.id, transcript=clip.transcript, similarity=cosine, samples=clip.samples
            )
    return found


def candidates(training: Sequence[Path]) -> list[Candidate]:
    """The utterances that are compared by voice: the same number of each list, evenly spaced.

    Utterances whose audio is gone are left out.
    """
    found = []
    for path in training:
        rows = pl.read_ndjson(path, schema=SCHEMA)
        every = max(1, -(-rows.height * len(training) // MOST_CLIPS))
        audio = AudioFolders.of(path.parent)
        for row in rows.gather_every(every).iter_rows(named=True):
            try:
                file = audio.existing(row["wav_path"])
            except FileNotFoundError:
                continue
            found.append(Candidate(row["id"], row["transcript"], in_storage(path), file))
    return found


class CachedEmbedder:
    """Speaker embeddings of audio files, cached by digest. The encoder is loaded on first use."""

    def __init__(self, name: str, cache: RecordCache) -> None:
        self.name = name
        self.cache = cache
        self.digest = encoder_digest(resolve(name, Path()))
        self._encoder: SpeakerEmbedder | None = None

    def __call__(self, files: Sequence[Path]) -> dict[Path, Embedding]:
        """Unit vectors by file; an unreadable file, or one without enough speech, has none."""
        keys = {path: digest_of(["voice 1", self.digest, sha256_file(path)]) for path in files}
        known = self.cache.get(keys.values())
        new = {key: self._embed(path) for path, key in keys.items() if key not in known}
        self.cache.put(new)
        known |= new
        return {
            path: np.asarray(known[key], np.float32) for path, key in keys.items() if known[key]
        }

    def _embed(self, path: Path) -> list[float]:
        if self._encoder is None:
            from tts_assets.speakers.encoder import open_voices  # imports torch

            self._encoder = open_voices(self.name)
        try:
            clip = read_clip(path)
        except BrokenAudio:
            return []
        vector = self._encoder.embed(clip.wave, clip.rate)
        return [] if vector is None else [round(float(x), DIGITS) for x in vector]


def in_storage(path: Path) -> str:
    """The path of a file of an artifact relative to the storage."""
    return "/".join(path.parts[-4:])  # asset, partition, fingerprint, file
