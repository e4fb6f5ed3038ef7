"""Finds utterances with a wrong speaker: ``python -m tts_assets.speakers.purity run.json``.

Each kept utterance is compared with the mean of its speaker's other utterances, and with the means
of the other speakers. ``result/purity.parquet`` has a row per utterance; ``outlier`` marks those
that are below the limit or nearer to another speaker. Utterances without a speaker or without
speech are set aside. Embeddings are cached by audio and encoder, so only new clips are embedded
when a corpus grows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    SetAside,
    nothing_usable,
    write_set_aside,
)
from tts_assets.core.audio import BrokenAudio
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config, one_thread
from tts_assets.corpora.samples import AudioFolders, Sample, read_samples
from tts_assets.speakers.config import PURITY_FILE, PurityProgram, encoder_digest, resolve
from tts_assets.speakers.encoder import NoSpeech, VoiceEncoder

BLOCK = 64  # clips per transaction of the cache; a killed run loses at most these
NAME_SPEAKERS = "name speakers in the corpus or its table"
DIGITS = 6  # of an embedding in the cache


@dataclass(frozen=True)
class EmbeddedUtterance:
    """A sample and its embedding (256,), or why it has none."""

    sample: Sample
    embedding: NDArray[np.float32] | SetAside


def embed(
    samples: Sequence[Sample],
    audio: AudioFolders,
    encoder: VoiceEncoder,
    identity: str,
    cache: RecordCache,
) -> list[EmbeddedUtterance]:
    """The embeddings of samples, read from the cache or computed and stored there."""
    keys = [f"{identity}:{s.original_data.get('audio_sha256', s.wav_path)}" for s in samples]
    known = cache.get(keys)
    fresh = {}
    found: list[EmbeddedUtterance] = []
    for key, sample in zip(keys, samples, strict=True):
        if not sample.speaker_id:
            found.append(
                EmbeddedUtterance(sample, SetAside(sample.id, "no speaker", NAME_SPEAKERS))
            )
            continue
        if key in known:
            found.append(EmbeddedUtterance(sample, np.array(known[key], dtype=np.float32)))
            continue
        try:
            vector = encoder.wav_to_embedding(audio.path(sample.wav_path))
        except (BrokenAudio, NoSpeech) as error:
            reason = error.reason if isinstance(error, BrokenAudio) else "no speech"
            found.append(EmbeddedUtterance(sample, SetAside(sample.id, reason, str(error))))
            continue
        fresh[key] = [round(float(x), DIGITS) for x in vector]
        found.append(EmbeddedUtterance(sample, np.array(fresh[key], dtype=np.float32)))
    cache.put(fresh)
    return found


def measure(embedded: Sequence[EmbeddedUtterance], min_similarity: float) -> pl.DataFrame:
    """A table with a row per utterance: similarities and whether it is an outlier.

    ``similarity`` is to the speaker's other utterances (null if there are none),
    ``similarity_nearest`` to the nearest other speaker. Raises ConfigError without embeddings.
    """
    usable = [(o.sample, o.embedding) for o in embedded if not isinstance(o.embedding, SetAside)]
    if not usable:
        what = (
            "no kept utterance has a speaker and enough speech for an embedding: "
            f"{NAME_SPEAKERS}, or leave speakers.purity out"
        )
        aside = (o.embedding for o in embedded if isinstance(o.embedding, SetAside))
        raise ConfigError(nothing_usable(what, aside))
    names = sorted({sample.speaker_id for sample, _ in usable})
    index = {name: number for number, name in enumerate(names)}
    truth = np.array([index[sample.speaker_id] for sample, _ in usable])
    vectors = np.stack([vector for _, vector in usable]).astype(np.float64)
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, truth, vectors)
    cosines = vectors @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    cosines[np.arange(len(truth)), truth] = -np.inf
    nearest = cosines.argmax(axis=1)
    without = sums[truth] - vectors
    norms = np.linalg.norm(without, axis=1)
    alone = np.bincount(truth)[truth] == 1
    own = np.einsum("rd,rd->r", vectors, without) / np.where(alone, 1, norms)
    rows = []
    for number, (sample, _) in enumerate(usable):
        mine = None if alone[number] else round(float(own[number]), 4)
        other = round(float(cosines[number, nearest[number]]), 4) if len(names) > 1 else None
        outlier = mine is not None and (mine < min_similarity or mine < (other or -1))
        near = names[nearest[number]] if other is not None else ""
        rows.append((sample.id, sample.wav_path, sample.speaker_id, mine, near, other, outlier))
    schema = {
        "id": pl.String,
        "wav_path": pl.String,
        "speaker": pl.String,
        "similarity": pl.Float64,
        "nearest": pl.String,
        "similarity_nearest": pl.Float64,
        "outlier": pl.Boolean,
    }
    return pl.DataFrame(rows, schema=schema, orient="row").sort("id")


def blocks(path: Path) -> Iterator[list[Sample]]:
    """The samples of a list in blocks of :data:`BLOCK`."""
    samples = read_samples(path)
    while block := list(islice(samples, BLOCK)):
        yield block


def main(argv: list[str] | None = None) -> None:
    """Measure the samples of a ``run.json``."""
    program = load_config(PurityProgram, argv)
    with one_thread(), Run(program.run_dir) as run:
        path = resolve(program.encoder, Path())
        encoder, identity = VoiceEncoder.load(path), encoder_digest(path)
        cache, audio = RecordCache(program.cache), AudioFolders.of(program.samples)
        embedded: list[EmbeddedUtterance] = []
        for block in run.progress(blocks(program.samples), f"embeddings of {BLOCK} clips"):
            embedded += embed(block, audio, encoder, identity, cache)
            if run.should_stop():
                run.stopped()
        rows = measure(embedded, program.purity.min_similarity)
        rows.write_parquet(run.result_dir / PURITY_FILE)
        set_aside = [o.embedding for o in embedded if isinstance(o.embedding, SetAside)]
        write_set_aside(run.result_dir / SET_ASIDE_FILE, set_aside)
        known = rows["similarity"].drop_nulls().to_list()
        run.finish(
            {
                "utterances": len(embedded),
                "set_aside": len(set_aside),
                "outliers": int(rows["outlier"].sum()),
                "speakers": rows["speaker"].n_unique(),
                "similarity": round(math.fsum(known) / len(known), 6) if known else 0.0,
            }
        )


if __name__ == "__main__":
    main()
