"""Does each speaker of a corpus sound like one? ``python -m tts_assets.speakers.purity run.json``.

Each kept utterance against the mean of its speaker's others, and against the other speakers'
means. ``result/purity.parquet`` has a row for each, ``outlier`` where it is below the limit or
nearer to somebody else; what names no speaker or holds no speech is set aside. Embeddings are kept
by audio and encoder, so that a corpus that grows has only its new clips heard.
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

from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.core.audio import BrokenAudio
from tts_assets.core.cache import RecordCache
from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config
from tts_assets.corpora.samples import Sample, read_samples
from tts_assets.speakers.config import PURITY_FILE, PurityProgram, encoder_digest, resolve
from tts_assets.speakers.encoder import NoSpeech, VoiceEncoder

BLOCK = 64  # clips a transaction of the cache: what a kill loses
NAME_SPEAKERS = "name speakers in the corpus or its table"
DIGITS = 6  # of an embedding in the cache


@dataclass(frozen=True)
class EmbeddedUtterance:
    """A sample's voice, or why it has none."""

    sample: Sample
    voice: NDArray[np.float32] | SetAside


def hear(
    samples: Sequence[Sample], encoder: VoiceEncoder, identity: str, cache: RecordCache
) -> list[EmbeddedUtterance]:
    """The voices of some samples, through the cache."""
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
            voice = encoder.wav_to_embedding(Path(sample.wav_path))
        except (BrokenAudio, NoSpeech) as error:
            reason = error.reason if isinstance(error, BrokenAudio) else "no speech"
            found.append(EmbeddedUtterance(sample, SetAside(sample.id, reason, str(error))))
            continue
        fresh[key] = [round(float(x), DIGITS) for x in voice]
        found.append(EmbeddedUtterance(sample, np.array(fresh[key], dtype=np.float32)))
    cache.put(fresh)
    return found


def measure(heard: Sequence[EmbeddedUtterance], min_similarity: float) -> pl.DataFrame:
    """A row for each voice: its speaker, how near it is to that speaker's other utterances (null
    if there are none) and to the nearest other speaker, and whether it is an outlier. Raises
    ConfigError if there is no voice."""
    voiced = [(one.sample, one.voice) for one in heard if not isinstance(one.voice, SetAside)]
    if not voiced:
        raise ConfigError(
            "no kept utterance has a speaker and enough speech to tell whose voice it is: "
            f"{NAME_SPEAKERS}, or leave speakers.purity out"
        )
    names = sorted({sample.speaker_id for sample, _ in voiced})
    place = {name: number for number, name in enumerate(names)}
    truth = np.array([place[sample.speaker_id] for sample, _ in voiced])
    vectors = np.stack([voice for _, voice in voiced]).astype(np.float64)
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
    for number, (sample, _) in enumerate(voiced):
        mine = None if alone[number] else round(float(own[number]), 4)
        other = round(float(cosines[number, nearest[number]]), 4) if len(names) > 1 else None
        outlier = mine is not None and (mine < min_similarity or mine < (other or -1))
        who = names[nearest[number]] if other is not None else ""
        rows.append((sample.id, sample.wav_path, sample.speaker_id, mine, who, other, outlier))
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
    samples = read_samples(path)
    while some := list(islice(samples, BLOCK)):
        yield some


def main(argv: list[str] | None = None) -> None:
    program = load_config(PurityProgram, argv)
    with Run(program.run_dir) as run:
        path = resolve(program.encoder, Path())
        encoder, identity = VoiceEncoder.load(path), encoder_digest(path)
        cache = RecordCache(program.cache)
        heard: list[EmbeddedUtterance] = []
        for block in run.progress(blocks(program.samples), f"voices of {BLOCK} clips"):
            heard += hear(block, encoder, identity, cache)
            if run.should_stop():
                run.stopped()
        rows = measure(heard, program.purity.min_similarity)
        rows.write_parquet(run.result_dir / PURITY_FILE)
        set_aside = [one.voice for one in heard if isinstance(one.voice, SetAside)]
        write_set_aside(run.result_dir / SET_ASIDE_FILE, set_aside)
        known = rows["similarity"].drop_nulls().to_list()
        run.finish(
            {
                "utterances": len(heard),
                "set_aside": len(set_aside),
                "outliers": int(rows["outlier"].sum()),
                "speakers": rows["speaker"].n_unique(),
                "similarity": round(math.fsum(known) / len(known), 6) if known else 0.0,
            }
        )


if __name__ == "__main__":
    main()
