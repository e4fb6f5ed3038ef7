"""A notebook in which one hears what a corpus is: some clips that were kept, some that were not.

``filtered_samples``: the utterances of a corpus as samples, measured, and filtered.

The rows go through three files of the work folder, so that memory does not grow with them:
``samples.parquet`` (with normalized text), ``clips.parquet`` (what must be measured of whose
audio) and ``quality.parquet`` (the metrics, row for row).

What the filters did, in tables and one picture. Sample files are scanned, never held.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import soundfile

from tts_assets.core.artifacts import (
    ArtifactStore,
    CorpusFacts,
    RawCorpus,
    SampleFacts,
    SpeechSegments,
)
from tts_assets.core.audio import BrokenAudio, read_wave
from tts_assets.core.cache import RecordCache
from tts_assets.core.notebook import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.core.plots import Histogram, histograms
from tts_assets.corpora.config import METRICS, FilterConfig, MeasureProgram, TextConfig
from tts_assets.corpora.filter import (
    KEPT_FILE,
    REJECTED_FILE,
    filter_rows,
    spoken,
    with_fields,
)
from tts_assets.corpora.filters import first_hit, of_samples, of_sources
from tts_assets.corpora.index import UTTERANCES_FILE
from tts_assets.corpora.normalizer import Normalizer
from tts_assets.corpora.quality import EXPENSIVE, QualityMeasurer, Wanted, wanted, word_error_rate

KEPT_SHOWN, REJECTED_SHOWN = 8, 4
SECONDS_SHOWN = 12  # of a clip
HIGHEST_RATE = 24_000  # Hz; twelve clips stay below 2 MB


def write_listening(folder: Path, corpus: str, kept: Path, rejected: Path) -> None:
    """Write ``listening.ipynb`` into ``folder``. It plays the first clips of each file: they are
    in the order of their ids, which are digests, so the first are any."""
    sections = []
    for title, path, shown in (("Kept", kept, KEPT_SHOWN), ("Rejected", rejected, REJECTED_SHOWN)):
        with path.open(encoding="utf-8") as lines:
            samples = [json.loads(line) for line in islice(lines, shown)]
        clips = [played for sample in samples if (played := clip(sample, folder))]
        sections.append(Section(title, clips))
    write_notebook(folder / NOTEBOOK_FILE, corpus, sections)
    for section in sections:
        for played in section.clips:
            played.path.unlink()


def clip(sample: dict[str, Any], folder: Path) -> NotebookClip | None:
    """The start of a sample as a FLAC file, which browsers play whatever the source was; None if
    it can no longer be read."""
    rate = min(sample["sample_rate"], HIGHEST_RATE)
    try:
        wave = read_wave(Path(sample["wav_path"]), rate)[: SECONDS_SHOWN * rate]
    except BrokenAudio:
        return None
    path = folder / f"{sample['id']}.flac"
    soundfile.write(path, wave, rate)
    facts = [
        sample.get("reason", ""),
        sample["speaker_id"],
        f"{sample['duration']:.1f} s",
        f"{sample['sample_rate']} Hz",
        sample["id"],
    ]
    caption = " \u00b7 ".join(fact for fact in facts if fact)
    return NotebookClip(sample["transcript"] or "(no words)", caption, path)


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
    gauge = QualityMeasurer(program.whisper)
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


QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 40
UNITS = {
    "duration": "duration, s",
    "rate": "characters a second",
    "dnsmos": "DNSMOS overall",
    "p808": "DNSMOS P.808",
    "snr": "SNR, dB",
    "clipping": "share of samples clipped",
    "silence": "share of silence",
    "wer": "word errors a word",
}


def scan_figures(path: Path) -> pl.LazyFrame:
    """Duration in seconds, speaking rate and every metric of the samples of a file; null where a
    figure is not known."""
    metrics = pl.Struct(dict.fromkeys(METRICS, pl.Float64))
    schema: dict[str, Any] = {
        "duration": pl.Float64,
        "transcript": pl.String,
        "dnsmos_mos_ovr": pl.Float64,
        "original_data": pl.Struct({"quality": metrics}),
    }
    quality = pl.col("original_data").struct.field("quality")
    score, duration = pl.col("dnsmos_mos_ovr"), pl.col("duration")
    letters = pl.col("transcript").str.len_chars()
    return pl.scan_ndjson(path, schema=schema).select(
        duration=pl.when(duration > 0).then(duration),
        rate=pl.when((duration > 0) & (letters > 0)).then(letters / duration),
        dnsmos=pl.when(score > 0).then(score),
        **{name: quality.struct.field(name) for name in METRICS if name != "dnsmos"},
    )


def quantiles(path: Path) -> pl.DataFrame:
    """A row a figure that is known of some sample: of how many, mean and quantiles."""
    every = pl.all()
    facts = {"samples": every.count(), "mean": every.mean()}
    facts |= {f"{100 * q:.0f} %": every.quantile(q, "nearest") for q in QUANTILES}
    rows = scan_figures(path)
    columns = pl.collect_all([rows.select(fact) for fact in facts.values()], engine="streaming")
    table = pl.DataFrame({"figure": list(UNITS.values())}).with_columns(
        pl.Series(name, [column[figure].item() for figure in UNITS], dtype=pl.Float64).round(3)
        for name, column in zip(facts, columns, strict=True)
    )
    return table.with_columns(pl.col("samples").cast(pl.Int64)).filter(pl.col("samples") > 0)


def picture(files: Mapping[str, Path]) -> str:
    """A panel a known figure: how it is distributed in each of the files; a PNG data URI."""
    rows = {name: scan_figures(path) for name, path in files.items() if path.stat().st_size}
    both = pl.concat(rows.values())
    lows, highs = (
        ends.row(0, named=True)
        for ends in pl.collect_all([both.min(), both.max()], engine="streaming")
    )
    panels: dict[str, dict[str, Histogram]] = {}
    for figure, unit in UNITS.items():
        low, high = lows[figure], highs[figure]
        if low is None:
            continue
        width = (high - low) / BINS or 1 / BINS
        place = ((pl.col(figure) - low) / width).floor().clip(0, BINS - 1).cast(pl.Int32)
        panels[unit] = {}
        for name, frame in rows.items():
            counts = frame.select(place.alias("bin")).drop_nulls().group_by("bin").len()
            found = dict(counts.collect(engine="streaming").iter_rows())
            panels[unit][name] = Histogram(low, width, [found.get(i, 0) for i in range(BINS)])
    return histograms(panels)


def reasons(counts: Mapping[str, int], config: FilterConfig) -> pl.DataFrame:
    """How many samples each filter rejected, in the order of the filters."""
    order = [each.reason for each in of_samples(config, opened=True)]
    known = [reason for reason in order if reason in counts]
    names = known + [reason for reason in counts if reason not in order]
    return pl.DataFrame({"reason": names, "samples": [counts[name] for name in names]})
