"""``filtered_samples``: the utterances of a corpus as samples, measured, and filtered.

The rows go through three files of the work folder, so that memory does not grow with them:
``samples.parquet`` (with normalized text), ``clips.parquet`` (what must be measured of whose
audio) and ``quality.parquet`` (the metrics, row for row).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from tts_assets.artifacts import ArtifactStore, CorpusFacts, RawCorpus, SampleFacts, SpeechSegments
from tts_assets.cache import RecordCache
from tts_assets.corpora.config import FilterConfig, MeasureProgram, TextConfig
from tts_assets.corpora.filter import (
    KEPT_FILE,
    REJECTED_FILE,
    filter_rows,
    spoken,
    with_fields,
)
from tts_assets.corpora.filters import first_hit, of_sources
from tts_assets.corpora.index import UTTERANCES_FILE
from tts_assets.corpora.listening import write_listening
from tts_assets.corpora.measure import wanted
from tts_assets.corpora.normalizer import Normalizer
from tts_assets.corpora.quality import EXPENSIVE, Gauge, Wanted, word_error_rate

Measure = Callable[[MeasureProgram], None]
OURS = ("audio_sha256", "licence", "text", "quality")  # what original_data tells of this stage
QUALITY = {
    "dnsmos": pl.Float64,
    "p808": pl.Float64,
    "snr": pl.Float64,
    "clipping": pl.Float64,
    "silence": pl.Float64,
    "wer": pl.Float64,
    "heard": pl.String,
    "unreadable": pl.String,
}


def filter_corpus(
    corpus: RawCorpus | SpeechSegments,
    config: FilterConfig,
    text: TextConfig,
    store: ArtifactStore,
    work: Path,
    launch: Measure,
) -> SampleFacts:
    """Write ``kept.jsonl``, ``rejected.jsonl`` and ``listening.ipynb`` to ``work / "result"``.

    ``launch`` runs the program that measures; it is called where a metric is expensive.
    """
    normalizer = Normalizer(text, store.caches)
    samples = work / "samples.parquet"
    spoken(samples_of(corpus), config, normalizer).sink_parquet(samples)
    rows = pl.scan_parquet(samples)
    if config.metrics:
        program = MeasureProgram(
            run_dir=work / "measure",
            clips=work / "clips.parquet",
            metrics=config.metrics,
            whisper=config.whisper,
            cache=store.cache("quality"),
        )
        clips_to_measure(rows, config).sink_parquet(program.clips)
        if EXPENSIVE.intersection(config.metrics):
            launch(program)
        write_quality(samples, program, work / "quality.parquet")
        rows = with_quality(rows, pl.scan_parquet(work / "quality.parquet"), config)
    counts = filter_rows(rows, config, work / "result", work, opened=bool(config.metrics))
    result = work / "result"
    write_listening(result, corpus.facts.corpus, result / KEPT_FILE, result / REJECTED_FILE)
    return SampleFacts(corpus=corpus.facts.corpus, normalizer=text.normalizer, **asdict(counts))


def samples_of(corpus: RawCorpus | SpeechSegments) -> pl.LazyFrame:
    """The index' rows in the sample schema, with ``text`` (raw), ``channels`` and
    ``audio_sha256``. Audio paths are absolute; what ``extra`` says holds."""
    facts: CorpusFacts = corpus.facts
    index = pl.scan_parquet(corpus.path / UTTERANCES_FILE)
    folder = pl.when(pl.col("pooled")).then(pl.lit(facts.audio_pool)).otherwise(pl.lit(facts.root))
    below = pl.concat_str(folder, pl.lit("/"), "audio")
    absolute = pl.col("audio").str.starts_with("/")
    own = extra("original_data").fill_null("{}")
    return index.select(
        "id",
        wav_path=pl.when(absolute).then("audio").otherwise(below),
        text="text",
        language="language",
        duration="duration",
        sample_rate=pl.col("sample_rate").cast(pl.Int64),
        speaker_id="speaker",
        **{
            name: extra(name).fill_null("")
            for name in ("emotion", "style", "voice_description", "sound_effect")
        },
        dnsmos_mos_ovr=extra("dnsmos_mos_ovr").cast(pl.Float64).fill_null(0.0),
        dataset_name=pl.lit(facts.corpus),
        own=own.map_batches(without_ours, return_dtype=pl.String, is_elementwise=True),
        channels="channels",
        audio_sha256="audio_sha256",
        licence="licence",
    ).with_columns(original_data=with_fields("own", pl.struct("audio_sha256", "licence", "text")))


def extra(name: str) -> pl.Expr:
    return pl.col("extra").str.json_path_match(f"$.{name}")


def without_ours(objects: pl.Series) -> pl.Series:
    """JSON objects without the keys that this stage writes: a corpus may be a result of it."""
    named = objects.str.contains_any([f'"{key}"' for key in OURS]).arg_true()
    if named.is_empty():
        return objects
    rest = [
        {key: value for key, value in json.loads(text).items() if key not in OURS}
        for text in objects.gather(named)
    ]
    return objects.scatter(named, [json.dumps(each, ensure_ascii=False) for each in rest])


def clips_to_measure(rows: pl.LazyFrame, config: FilterConfig) -> pl.LazyFrame:
    """Of every row its audio and, by metric, whether it is wanted: not of what the filters before
    the first metric reject, nor a DNSMOS that the sample brings."""
    passes = first_hit(of_sources(config)).is_null()
    wants = dict.fromkeys(config.metrics, passes)
    if "dnsmos" in wants:
        wants["dnsmos"] &= pl.col("dnsmos_mos_ovr") == 0
    if "wer" in wants:
        wants["wer"] &= pl.col("transcript") != ""
    return rows.select("audio_sha256", "language", audio="wav_path", **wants)


def write_quality(samples: Path, program: MeasureProgram, target: Path) -> None:
    """The metrics of every row, QUALITY's columns; what is not in the cache yet is measured."""
    gauge = Gauge(program.whisper)
    cache = RecordCache(program.cache)
    schema = pl.DataFrame(schema=QUALITY).to_arrow().schema
    transcripts = pl.scan_parquet(samples).select("transcript", "language")
    place = 0
    with pq.ParquetWriter(target, schema) as writer:
        for clips in wanted(program.clips, program.metrics):
            texts = transcripts.slice(place, len(clips)).collect().rows()
            place += len(clips)
            known, unreadable = gauge.measure(clips, cache)
            table = [
                figures(clip, text, known, unreadable, gauge.ear)
                for clip, (text, _) in zip(clips, texts, strict=True)
            ]
            writer.write_table(pl.DataFrame(table, schema=QUALITY).to_arrow())


def figures(
    clip: Wanted, text: str, known: dict[str, Any], unreadable: dict[str, str], ear: str
) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {}
    for key, metric in clip.keys(ear).items():
        value = known.get(key)
        if value is None:
            continue
        if metric == "wer":
            row |= {"heard": value, "wer": word_error_rate(text, value, clip.language)}
        elif isinstance(value, dict):
            row |= {name: value[name] for name in clip.metrics if name in value}
        else:
            row[metric] = value
    return {**dict.fromkeys(QUALITY), **row, "unreadable": unreadable.get(clip.audio_sha256)}


def with_quality(rows: pl.LazyFrame, quality: pl.LazyFrame, config: FilterConfig) -> pl.LazyFrame:
    """Samples with their metrics as columns, and in ``original_data`` as ``quality``."""
    shown = [*config.metrics, *(["heard"] if "wer" in config.metrics else [])]
    told = pl.struct(pl.struct(shown).alias("quality"))
    measured = pl.any_horizontal(pl.col(shown).is_not_null())
    return pl.concat([rows, quality], how="horizontal").with_columns(
        dnsmos_mos_ovr=pl.coalesce("dnsmos", "dnsmos_mos_ovr"),
        original_data=pl.when(measured)
        .then(with_fields("original_data", told))
        .otherwise("original_data"),
    )
