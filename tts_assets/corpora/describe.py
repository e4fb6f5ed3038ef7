"""Metadata and checks of the assets of a corpus: accounting, previews, tables and plots.

Sample files are scanned with polars' streaming engine, so that memory does not grow with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, read_set_aside
from tts_assets.core.artifacts import ArtifactStore, RawCorpus, SampleManifest, SpeechSegments
from tts_assets.core.metadata import (
    NOTEBOOK_FILE,
    CheckResult,
    Histogram,
    Markdown,
    Metadata,
    column_schema,
    histogram,
    histograms,
    image,
    markdown_table,
    set_aside_reasons,
)
from tts_assets.corpora.config import METRICS, FilterConfig
from tts_assets.corpora.filter import KEPT_FILE, REJECTED_FILE, of_samples
from tts_assets.corpora.index import ABOUT_UTTERANCES, UTTERANCES_FILE, plausibility
from tts_assets.corpora.samples import ABOUT_SAMPLES, FIELDS, SCHEMA
from tts_assets.corpora.segments.result import CARD_FILE, account

SECONDS = (0, 1, 2, 4, 7, 10, 15, 20, 30)  # lower bounds of the duration classes
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 40
ROWS_SHOWN = 8
UNITS = {
    "duration": "duration, s",
    "rate": "characters per second",
    "dnsmos": "DNSMOS overall",
    "p808": "DNSMOS P.808",
    "snr": "SNR, dB",
    "clipping": "fraction of clipped samples",
    "silence": "fraction of silence",
    "wer": "WER",
}


def count_entries(_: ArtifactStore, corpus: RawCorpus) -> CheckResult:
    """Compares the entries that the reader counted with the rows and the set-aside records.

    The reader does not run again: that takes as long as indexing, and the corpus may have grown.
    """
    entries = corpus.facts.entries
    rows = pl.scan_parquet(corpus.path / UTTERANCES_FILE).select(pl.len()).collect().item()
    aside = len(read_set_aside(corpus.path / SET_ASIDE_FILE))
    counts = {"entries": entries, "utterances": rows, "set_aside": aside}
    return CheckResult(entries == rows + aside, counts)


def count_seconds(store: ArtifactStore, segments: SpeechSegments) -> CheckResult:
    """Compares the time in clips and set aside with the recordings. Raises ArtifactError."""
    source = segments.manifest.inputs["raw_corpus"]
    folder = store.folder(source.asset, source.partition) / source.fingerprint
    return CheckResult(True, account(RawCorpus.open(folder), segments))


def count_samples(_: ArtifactStore, samples: SampleManifest) -> CheckResult:
    """Compares the samples that went in with the kept and rejected lines."""
    kept, rejected = (count_lines(samples.path / name) for name in (KEPT_FILE, REJECTED_FILE))
    samples_in = samples.facts.samples_in
    counts = {"samples_in": samples_in, "kept": kept, "rejected": rejected}
    return CheckResult(samples_in == kept + rejected, counts)


def check_columns(_: ArtifactStore, corpus: RawCorpus) -> CheckResult:
    """Looks for signs that columns of the corpus were mixed up."""
    signs = plausibility(pl.read_parquet(corpus.path / UTTERANCES_FILE))
    return CheckResult(not signs, {"signs": len(signs)}, "; ".join(signs))


def describe_corpus(corpus: RawCorpus) -> Metadata:
    """Metadata of ``raw_corpus``: a preview, durations in seconds, and counted reasons."""
    rows = pl.read_parquet(corpus.path / UTTERANCES_FILE)
    shown = rows.select("id", "audio", "duration", "sample_rate", "speaker", "text")
    seconds = rows["duration"]
    longest = {"seconds_median": seconds.median(), "seconds_longest": seconds.max()}
    return {
        "dagster/partition_row_count": len(rows),
        "utterances_preview": markdown_table(shown.head(ROWS_SHOWN)),
        "durations": markdown_table(durations(seconds)),
        "set_aside_reasons": set_aside_reasons(corpus.path),
        **column_schema(rows.schema, ABOUT_UTTERANCES),
        **{name: round(float(value or 0), 3) for name, value in longest.items()},  # type: ignore[arg-type]
    }


def describe_segments(segments: SpeechSegments) -> Metadata:
    """Metadata: the columns, and for recordings the dataset card, a histogram and a notebook."""
    table = segments.path / UTTERANCES_FILE
    rows = pl.read_parquet(table, columns=["duration"])
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": len(rows),
        **column_schema(pl.read_parquet_schema(table), ABOUT_UTTERANCES),
    }
    if not segments.facts.recordings:
        return metadata
    plot = histogram(rows["duration"].to_list(), x_label="seconds", y_label="clips")
    card = (segments.path / CARD_FILE).read_text()
    return metadata | {
        "card": Markdown(f"{card}\n{image('durations', plot)}"),
        "listening": segments.path / NOTEBOOK_FILE,
        "set_aside_reasons": set_aside_reasons(segments.path),
    }


def describe_samples(samples: SampleManifest, filters: FilterConfig) -> Metadata:
    """Metadata of ``filtered_samples``: a preview, the filters' effect, quality and a notebook."""
    kept, rejected = samples.path / KEPT_FILE, samples.path / REJECTED_FILE
    shown = ("id", "transcript", "language", "duration", "speaker_id")
    rows = pl.scan_ndjson(kept, schema=SCHEMA).select(shown)
    seconds = rows.select("duration").collect(engine="streaming")["duration"]
    plot = plot_distributions({"kept": kept, "rejected": rejected})
    return {
        "dagster/partition_row_count": samples.facts.kept,
        **column_schema(FIELDS, ABOUT_SAMPLES),
        "samples_preview": markdown_table(rows.head(ROWS_SHOWN).collect()),
        "rejected_in_order": markdown_table(reasons(samples.facts.reasons, filters)),
        "durations": markdown_table(durations(seconds)),
        "quality": markdown_table(quantiles(kept)),
        "distributions": image("distributions", plot),
        "listening": samples.path / NOTEBOOK_FILE,
    }


def count_lines(path: Path) -> int:
    """The number of lines of a file."""
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def read_rejected(path: Path) -> Iterator[SetAside]:
    """The rejected samples of a file as records: id, reason, and value against limit."""
    with path.open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            detail = f"{line.get('value')} against {line.get('limit')}"
            yield SetAside(line.get("id") or line.get("where", ""), line["reason"], detail)


def durations(seconds: pl.Series) -> pl.DataFrame:
    """The number of clips and their minutes by class of duration; ``seconds`` has one per clip."""
    rows = []
    for low, high in pairwise([*SECONDS, float("inf")]):
        inside = seconds.filter((seconds >= low) & (seconds < high))
        name = f"{low} to {high} s" if high < float("inf") else f"from {low} s"
        rows.append({"length": name, "clips": len(inside), "minutes": round(inside.sum() / 60, 2)})
    return pl.DataFrame(rows)


def reasons(counts: Mapping[str, int], config: FilterConfig) -> pl.DataFrame:
    """How many samples each filter rejected, in the order of the filters."""
    order = [each.reason for each in of_samples(config, opened=True)]
    known = [reason for reason in order if reason in counts]
    names = known + [reason for reason in counts if reason not in order]
    return pl.DataFrame({"reason": names, "samples": [counts[name] for name in names]})


def scan_figures(path: Path) -> pl.LazyFrame:
    """Duration in seconds, speaking rate and all metrics of the samples in ``path``.

    The columns are the keys of UNITS. A figure that is not known is null.
    """
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
    """One row per figure that is known for any sample: the sample count, mean and quantiles."""
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


def plot_distributions(files: Mapping[str, Path]) -> str:
    """A histogram per known figure, with one series per file.

    Returns a PNG data URI; an empty text without samples.
    """
    rows = {name: scan_figures(path) for name, path in files.items() if path.stat().st_size}
    if not rows:
        return ""
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
        index = ((pl.col(figure) - low) / width).floor().clip(0, BINS - 1).cast(pl.Int32)
        panels[unit] = {}
        for name, frame in rows.items():
            counts = frame.select(index.alias("bin")).drop_nulls().group_by("bin").len()
            found = dict(counts.collect(engine="streaming").iter_rows())
            panels[unit][name] = Histogram(low, width, [found.get(i, 0) for i in range(BINS)])
    return histograms(panels)
