"""``filtered_samples``: the utterances of a corpus as samples, measured and filtered.

The rows pass through three files of the work folder, so that memory does not grow with them:
``samples.parquet`` (with normalized text), ``clips.parquet`` (the metrics to measure per clip) and
``quality.parquet`` (the metrics, row for row). ``listening.ipynb`` plays some kept and some
rejected clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import soundfile

from tts_assets.audio_models.whisper import pinned_whisper
from tts_assets.core.accounting import SET_ASIDE_FILE, raise_nothing_usable, read_set_aside
from tts_assets.core.artifacts import (
    ArtifactStore,
    CorpusFacts,
    RawCorpus,
    SampleFacts,
    SpeechSegments,
)
from tts_assets.core.audio import BrokenAudio, read_wave
from tts_assets.core.cache import RecordCache
from tts_assets.core.metadata import NOTEBOOK_FILE, NotebookClip, Section, write_notebook
from tts_assets.corpora.config import FilterConfig, MeasureProgram, TextConfig
from tts_assets.corpora.corrections import Corrections
from tts_assets.corpora.describe import read_rejected
from tts_assets.corpora.filter import (
    KEPT_FILE,
    REJECTED_FILE,
    filter_rows,
    first_hit,
    of_sources,
    with_fields,
    with_transcripts,
)
from tts_assets.corpora.index import UTTERANCES_FILE
from tts_assets.corpora.quality import (
    EXPENSIVE,
    MeasureRequest,
    QualityMeasurer,
    read_requests,
    word_error_rate,
)
from tts_assets.corpora.samples import AudioFolders, published_names
from tts_assets.corpora.text import Normalizer

Launch = Callable[[MeasureProgram], None]
STAGE_KEYS = ("audio_sha256", "licence", "text", "quality")  # of original_data, written here
KEPT_SHOWN, REJECTED_SHOWN = 8, 4
SECONDS_SHOWN = 12  # per clip
HIGHEST_RATE = 24_000  # Hz; twelve clips stay below 2 MB
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
    launch: Launch,
    corrections: Corrections,
) -> SampleFacts:
    """Write ``kept.jsonl``, ``rejected.jsonl`` and ``listening.ipynb`` to ``work / "result"``.

    ``corrections`` replace texts and drop clips before anything is measured.

    ``launch`` runs the program of ``quality.py``; it is called if a metric is expensive. Raises an
    error with all reasons if no sample is kept.
    """
    normalizer = Normalizer(text, store.caches)
    audio = AudioFolders.of_store(store, corpus.partition)
    samples = work / "samples.parquet"
    with_transcripts(samples_of(corpus, corrections), config, normalizer).sink_parquet(samples)
    rows = pl.scan_parquet(samples)
    if config.metrics:
        program = MeasureProgram(
            run_dir=work / "measure",
            clips=work / "clips.parquet",
            metrics=config.metrics,
            whisper=pinned_whisper(config.whisper),
            cache=store.cache("quality"),
        )
        clips_to_measure(rows, config, audio).sink_parquet(program.clips)
        if EXPENSIVE.intersection(config.metrics):
            launch(program)
        write_quality(samples, program, work / "quality.parquet")
        rows = with_quality(rows, pl.scan_parquet(work / "quality.parquet"), config)
    counts = filter_rows(rows, config, work / "result", work, opened=bool(config.metrics))
    result = work / "result"
    if not counts.kept:
        what = f"corpus {corpus.partition!r} has no sample that passes the filters"
        rejected = read_rejected(result / REJECTED_FILE)
        raise_nothing_usable(what, [*rejected, *read_set_aside(corpus.path / SET_ASIDE_FILE)])
    write_listening(result, corpus.facts.corpus, audio)
    return SampleFacts(corpus=corpus.facts.corpus, normalizer=text.normalizer, **asdict(counts))


def samples_of(corpus: RawCorpus | SpeechSegments, corrections: Corrections) -> pl.LazyFrame:
    """The rows of the index in the sample schema, with ``text`` (raw) and ``audio_sha256``.

    The text is the corrected one; the column ``dropped`` marks clips that a correction drops.

    Audio is named as in published samples. Fields in ``extra`` override the defaults.
    """
    facts: CorpusFacts = corpus.facts
    index = corrections.apply(pl.scan_parquet(corpus.path / UTTERANCES_FILE))
    own = extra("original_data").fill_null("{}")
    return index.select(
        *("id", "dropped"),
        wav_path=published_names(),
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
        own=own.map_batches(without_stage_keys, return_dtype=pl.String, is_elementwise=True),
        audio_sha256="audio_sha256",
        licence="licence",
    ).with_columns(original_data=with_fields("own", pl.struct("audio_sha256", "licence", "text")))


def extra(name: str) -> pl.Expr:
    """A field of the JSON column ``extra`` as text; null if it is missing."""
    return pl.col("extra").str.json_path_match(f"$.{name}")


def without_stage_keys(objects: pl.Series) -> pl.Series:
    """JSON objects without STAGE_KEYS, which they have if a corpus is a result of this stage."""
    named = objects.str.contains_any([f'"{key}"' for key in STAGE_KEYS]).arg_true()
    if named.is_empty():
        return objects
    rest = [
        {key: value for key, value in json.loads(text).items() if key not in STAGE_KEYS}
        for text in objects.gather(named)
    ]
    return objects.scatter(named, [json.dumps(each, ensure_ascii=False) for each in rest])


def clips_to_measure(rows: pl.LazyFrame, config: FilterConfig, audio: AudioFolders) -> pl.LazyFrame:
    """The audio of every row and, by metric, whether to measure it.

    Rows that are rejected before the first metric are not measured, nor a DNSMOS that the sample
    has already.
    """
    passes = first_hit(of_sources(config)).is_null()
    wants = dict.fromkeys(config.metrics, passes)
    if "dnsmos" in wants:
        wants["dnsmos"] &= pl.col("dnsmos_mos_ovr") == 0
    if "wer" in wants:
        wants["wer"] &= pl.col("transcript") != ""
    return rows.select("audio_sha256", "language", audio=audio.paths("wav_path"), **wants)


def write_quality(samples: Path, program: MeasureProgram, target: Path) -> None:
    """Write the columns of QUALITY for every row; metrics that the cache lacks are measured."""
    measurer = QualityMeasurer(program.whisper)
    cache = RecordCache(program.cache)
    schema = pl.DataFrame(schema=QUALITY).to_arrow().schema
    transcripts = pl.scan_parquet(samples).select("transcript", "language")
    position = 0
    with pq.ParquetWriter(target, schema) as writer:
        for clips in read_requests(program.clips, program.metrics):
            texts = transcripts.slice(position, len(clips)).collect().rows()
            position += len(clips)
            known, unreadable = measurer.measure(clips, cache)
            table = [
                quality_row(clip, text, known, unreadable, measurer.model)
                for clip, (text, _) in zip(clips, texts, strict=True)
            ]
            writer.write_table(pl.DataFrame(table, schema=QUALITY).to_arrow())


def quality_row(
    clip: MeasureRequest,
    text: str,
    known: dict[str, Any],
    unreadable: dict[str, str],
    model: str,
) -> dict[str, Any]:
    """One row with the columns of QUALITY."""
    row: dict[str, Any] = {}
    for key, metric in clip.keys(model).items():
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
    """Samples with their metrics, as columns and as ``quality`` of ``original_data``."""
    shown = [*config.metrics, *(["heard"] if "wer" in config.metrics else [])]
    fields = pl.struct(pl.struct(shown).alias("quality"))
    measured = pl.any_horizontal(pl.col(shown).is_not_null())
    return pl.concat([rows, quality], how="horizontal").with_columns(
        dnsmos_mos_ovr=pl.coalesce("dnsmos", "dnsmos_mos_ovr"),
        original_data=pl.when(measured)
        .then(with_fields("original_data", fields))
        .otherwise("original_data"),
    )


def write_listening(folder: Path, corpus: str, audio: AudioFolders) -> None:
    """Write ``listening.ipynb`` to ``folder``, with the first kept and rejected clips there.

    Lines are in the order of ids, which are digests: the first clips are a random choice.
    """
    sections = []
    for title, name, shown in (
        ("Kept", KEPT_FILE, KEPT_SHOWN),
        ("Rejected", REJECTED_FILE, REJECTED_SHOWN),
    ):
        with (folder / name).open(encoding="utf-8") as lines:
            samples = [json.loads(line) for line in islice(lines, shown)]
        clips = [played for sample in samples if (played := notebook_clip(sample, folder, audio))]
        sections.append(Section(title, clips))
    write_notebook(folder / NOTEBOOK_FILE, corpus, sections)
    for section in sections:
        for played in section.clips:
            played.path.unlink()


def notebook_clip(sample: dict[str, Any], folder: Path, audio: AudioFolders) -> NotebookClip | None:
    """The first seconds of a sample as a FLAC file, which browsers play.

    None if the audio can no longer be read.
    """
    rate = min(sample["sample_rate"], HIGHEST_RATE)
    try:
        wave = read_wave(audio.path(sample["wav_path"]), rate)[: SECONDS_SHOWN * rate]
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
