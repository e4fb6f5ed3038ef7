"""The account of a segmented corpus, read again from what was published."""

from __future__ import annotations

from typing import Any

import polars as pl

from tts_assets.artifacts import ArtifactError, CorpusFacts, RawCorpus, SpeechSegments
from tts_assets.corpora.index import UTTERANCES_FILE

SPANS_FILE = "spans.parquet"
KEPT = "kept"
SPANS = {
    "recording": pl.String,  # its id in raw_corpus
    "start": pl.Int64,  # frames
    "end": pl.Int64,
    "sample_rate": pl.Int32,
    "reason": pl.String,  # why it is in no clip; "kept": it is one
    "clip": pl.String,  # its id
    "text": pl.String,
    "confidence": pl.Float64,
    "speaker_similarity": pl.Float64,
}

Numbers = dict[str, int | float]


def corpus_facts(corpus: RawCorpus) -> dict[str, Any]:
    """Those facts of a raw corpus that its segments have, too."""
    return {name: getattr(corpus.facts, name) for name in CorpusFacts.model_fields}


def account(corpus: RawCorpus, segments: SpeechSegments) -> Numbers:
    """What was recorded, kept and set aside. Raises ArtifactError where it does not add up.

    The spans of each recording must begin at 0, follow one another and end with it (as many
    frames as its duration says, to one), and the kept ones must be the clips, each once.
    """
    rows = pl.read_parquet(segments.path / UTTERANCES_FILE)
    if rows["id"].n_unique() != len(rows):
        raise ArtifactError(f"{segments.path}: an utterance is there twice")
    recordings = pl.read_parquet(corpus.path / UTTERANCES_FILE)
    if not (segments.path / SPANS_FILE).is_file():
        if not rows.equals(recordings):
            raise ArtifactError(f"{segments.path} does not hold the rows of {corpus.path}")
        return {"utterances": len(rows)}
    spans = pl.read_parquet(segments.path / SPANS_FILE)
    _check_that_spans_cover(recordings, spans, segments)
    kept = spans.filter(pl.col("reason") == KEPT)
    if sorted(kept["clip"]) != sorted(rows["id"]):
        raise ArtifactError(f"{segments.path}: the clips are not those of {SPANS_FILE}")
    seconds = (spans["end"] - spans["start"]) / spans["sample_rate"]
    is_kept = spans["reason"] == KEPT
    return {
        "recordings": len(recordings),
        "clips": len(rows),
        "seconds_recorded": round(float(recordings["duration"].sum()), 3),
        "seconds_kept": round(float(seconds.filter(is_kept).sum()), 3),
        "seconds_set_aside": round(float(seconds.filter(~is_kept).sum()), 3),
    }


def _check_that_spans_cover(
    recordings: pl.DataFrame, spans: pl.DataFrame, segments: SpeechSegments
) -> None:
    before = pl.col("end").shift(1, fill_value=0).over("recording")
    holes = spans.filter((pl.col("start") != before) | (pl.col("end") <= pl.col("start")))
    if len(holes):
        first = holes.row(0, named=True)
        raise ArtifactError(
            f"{segments.path}: recording {first['recording']} is not accounted for before frame "
            f"{first['start']}; materialize speech_segments again"
        )
    ends = spans.group_by("recording").agg(pl.col("end").max(), pl.col("sample_rate").first())
    joined = recordings.join(ends, left_on="id", right_on="recording", how="left", suffix="_span")
    frames = (pl.col("duration") * pl.col("sample_rate")).round()
    short = joined.filter(((frames - pl.col("end")).abs() > 1) | pl.col("end").is_null())
    if len(short):
        first = short.row(0, named=True)
        raise ArtifactError(
            f"{segments.path}: of {first['audio']}, {first['duration']} s, only "
            f"{first['end'] or 0} frames are accounted for; materialize speech_segments again"
        )
