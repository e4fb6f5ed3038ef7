"""What the filters did, in tables and one picture. Sample files are scanned, never held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tts_assets.corpora.config import METRICS, FilterConfig
from tts_assets.corpora.filters import of_samples
from tts_assets.plots import Histogram, histograms

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
