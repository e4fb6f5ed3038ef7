"""The clips of a corpus as the studio shows them: suspect ones first, with audio and waveform.

The figures are those that ``filtered_samples`` measured, and those of ``speaker_purity`` where it
was made. Each sign of a fault has a severity from 0 to 1; a clip's ``suspicion`` is their sum.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import soundfile

from tts_assets.core.artifacts import ArtifactError, ArtifactStore, atomic_write
from tts_assets.core.audio import read_clip
from tts_assets.corpora.filter import KEPT_FILE, REJECTED_FILE
from tts_assets.corpora.samples import AudioFolders
from tts_assets.speakers.config import PURITY_FILE

WER_SHOWN = 0.1  # of ASR against the text; the packaged model makes errors of its own below
CLIPPING_SHOWN = 0.001  # fraction of clipped samples, which is audible in speech
SNR_SHOWN = 10.0  # dB
CONFIDENCE_SHOWN = 0.6  # of the words of a clip that was cut from a recording
RATE_DEVIATIONS = 5.0  # median absolute deviations from the median of characters per second
FACTS: dict[str, Any] = {
    "text": pl.String,
    "audio_sha256": pl.String,
    "confidence": pl.Float64,
    "quality": pl.Struct(
        {"wer": pl.Float64, "heard": pl.String, "clipping": pl.Float64, "snr": pl.Float64}
    ),
}
LINE: dict[str, Any] = {
    "id": pl.String,
    "wav_path": pl.String,
    "transcript": pl.String,
    "duration": pl.Float64,
    "speaker_id": pl.String,
    "original_data": pl.Struct(FACTS),
    "reason": pl.String,
}
OTHER_SPEAKER = {"id": pl.String, "similarity": pl.Float64, "nearest": pl.String}
SHOWN = ("id", "text", "transcript", "heard", "duration", "speaker", "reason", "signs")
OUTLINE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'preserveAspectRatio="none"><path d="{path}" fill="none" stroke="#7d8087" '
    'stroke-width="1.6"/></svg>'
)


def clip_table(store: ArtifactStore, corpus: str) -> pl.DataFrame:
    """The clips of the current ``filtered_samples``, the most suspect first.

    Columns: :data:`SHOWN`, ``wav_path`` and ``suspicion``. Raises :class:`ArtifactError` if the
    asset was not made.
    """
    samples = store.current("filtered_samples", corpus).path
    try:
        purity = store.current("speaker_purity", corpus).path / PURITY_FILE
    except ArtifactError:
        purity = None
    return read_clips(samples, purity)


@lru_cache(maxsize=4)  # artifacts never change
def read_clips(samples: Path, purity: Path | None) -> pl.DataFrame:
    """:func:`clip_table` of the folder of ``filtered_samples`` and a table of ``purity.py``."""
    files = [samples / name for name in (KEPT_FILE, REJECTED_FILE)]
    lines = pl.concat([pl.scan_ndjson(file, schema=LINE) for file in files if file.stat().st_size])
    facts = pl.col("original_data").struct
    quality = facts.field("quality").struct
    rows = lines.select(
        *("id", "wav_path", "transcript", "duration", "reason"),
        speaker="speaker_id",
        text=facts.field("text").fill_null(pl.col("transcript")),
        confidence=facts.field("confidence"),
        **{name: quality.field(name) for name in ("wer", "heard", "clipping", "snr")},
        rate=pl.col("transcript").str.len_chars() / pl.col("duration"),
    )
    rows = rows.join(other_speakers(purity), on="id", how="left")
    signs = signs_of()
    severity = [pl.when(hit).then(grade).otherwise(0.0) for hit, grade, _ in signs]
    words = [pl.when(hit).then(text) for hit, _, text in signs]
    return (
        rows.with_columns(
            suspicion=pl.sum_horizontal(severity), signs=pl.concat_list(words).list.drop_nulls()
        )
        .select(*SHOWN, "wav_path", "suspicion")
        .sort("suspicion", "id", descending=[True, False])
        .collect()
    )


def other_speakers(purity: Path | None) -> pl.LazyFrame:
    """The utterances with a wrong speaker: ``id``, ``similarity`` and the ``nearest`` speaker."""
    if purity is None:
        return pl.LazyFrame(schema=OTHER_SPEAKER)
    return pl.scan_parquet(purity).filter("outlier").select(*OTHER_SPEAKER)


def signs_of() -> list[tuple[pl.Expr, pl.Expr, pl.Expr]]:
    """Each sign of a fault: where it is, its severity from 0 to 1, and its words."""
    wer, clipping, snr = (pl.col(name) for name in ("wer", "clipping", "snr"))
    confidence, rate, near = (pl.col(name) for name in ("confidence", "rate", "nearest"))
    distance = (rate - rate.median()).abs()
    other = pl.format("another speaker: similarity {}", pl.col("similarity").round(2))
    nearer = pl.when(near != "").then(pl.format("{}, near {}", other, near)).otherwise(other)
    return [
        (pl.col("reason").is_not_null(), pl.lit(1.0), pl.format("rejected: {}", "reason")),
        (pl.col("similarity").is_not_null(), pl.lit(1.0), nearer),
        (
            wer > WER_SHOWN,
            wer.clip(0, 1),
            pl.format("ASR differs: WER {} %", (100 * wer).round(0).cast(pl.Int64)),
        ),
        (
            clipping > CLIPPING_SHOWN,
            (50 * clipping).clip(0.1, 1),
            pl.format("clipped: {} % of samples", (100 * clipping).round(2)),
        ),
        (
            confidence < CONFIDENCE_SHOWN,
            1 - confidence,
            pl.format("ASR confidence {}", confidence.round(2)),
        ),
        (snr < SNR_SHOWN, pl.lit(0.3), pl.format("noise: SNR {} dB", snr.round(0))),
        (
            distance > RATE_DEVIATIONS * distance.median(),
            pl.lit(0.3),
            pl.format("{} characters per second", rate.round(0).cast(pl.Int64)),
        ),
    ]


def audio_file(store: ArtifactStore, corpus: str, row: dict[str, Any]) -> Path:
    """A clip as 16-bit FLAC, which every browser plays, from the cache of the storage.

    Raises :class:`~tts_assets.core.audio.BrokenAudio`, or FileNotFoundError with the remedy.
    """
    return cached_clip(store, corpus, row).with_suffix(".flac")


def outline_file(store: ArtifactStore, corpus: str, row: dict[str, Any]) -> Path:
    """The waveform of a clip as SVG, from the cache of the storage. Raises as above."""
    return cached_clip(store, corpus, row).with_suffix(".svg")


def cached_clip(store: ArtifactStore, corpus: str, row: dict[str, Any]) -> Path:
    """The path of the cached files of a clip without their suffix; they are made if missing."""
    from tts_assets.evaluation.page import OUTLINE_BARS, OUTLINE_HEIGHT, outline  # half a second

    made = store.caches / "studio" / row["id"]
    if made.with_suffix(".svg").is_file():
        return made
    folders = AudioFolders.of_store(store, corpus)
    clip = read_clip(folders.existing(row["wav_path"]))
    with atomic_write(made.with_suffix(".flac")) as aside:
        soundfile.write(aside, clip.wave, clip.rate, format="FLAC", subtype="PCM_16")
    picture = OUTLINE.format(width=3 * OUTLINE_BARS, height=OUTLINE_HEIGHT, path=outline(clip.wave))
    with atomic_write(made.with_suffix(".svg")) as aside:
        aside.write_text(picture)
    return made
