"""Tables and plots about the samples of a corpus, for the metadata of ``filtered_samples``.

Sample files are scanned with polars' streaming engine, so that memory does not grow with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl

from tts_assets.core.accounting import SetAside
from tts_assets.core.plots import Histogram, histograms
from tts_assets.corpora.config import METRICS, FilterConfig
from tts_assets.corpora.filters import of_samples

SECONDS = (0, 1, 2, 4, 7, 10, 15, 20, 30)  # lower bounds of the duration classes
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 40
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


def markdown_table(rows: pl.DataFrame) -> str:
    """All rows and columns as a Markdown table; texts are cut after 80 characters."""
    with pl.Config(
        tbl_formatting="MARKDOWN",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_width_chars=1000,
        tbl_cols=-1,
        tbl_rows=-1,
        fmt_str_lengths=80,
    ):
        return str(rows)


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
