"""Filter samples: ``filtered_samples``, and any sample JSONL by hand with
``python -m tts_assets.corpora.filter run.json``.

Rows flow through polars' streaming engine: all cores read, filter and write, in memory that does
not grow with the rows. Only texts that normalization changes go through Python. The same rows give
the same bytes on any number of threads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import ComputeError

from tts_assets.core.program import Run, load_config
from tts_assets.corpora.config import FilterConfig, FilterProgram
from tts_assets.corpora.filters import (
    NOT_WHOLE,
    Filter,
    first_hit,
    mark_duplicates,
    mark_rates,
    needs_other_samples,
    of_samples,
    of_sources,
)
from tts_assets.corpora.normalizer import Normalizer
from tts_assets.corpora.samples import as_line, has_long_lines, scan_samples, separate_bad_lines

KEPT_FILE, REJECTED_FILE = "kept.jsonl", "rejected.jsonl"
LINES: dict[str, Any] = {"include_header": False, "quote_style": "never"}  # of sink_csv


@dataclass(frozen=True)
class Counts:
    """The counts of one run; ``reasons`` are in the order of the filters, ``hours`` are kept."""

    samples_in: int
    kept: int
    rejected: int
    reasons: dict[str, int]
    hours: float
    speakers: int


def with_transcripts(
    rows: pl.LazyFrame, config: FilterConfig, normalizer: Normalizer
) -> pl.LazyFrame:
    """Rows with a ``transcript``: the normalized ``text`` where the first filters pass.

    Elsewhere the text is copied, because normalization is the expensive step.
    """
    passes = first_hit(of_sources(config)).is_null() & (pl.col("text") != "")
    return normalizer.rows(rows, passes)


def filter_rows(
    rows: pl.LazyFrame, config: FilterConfig, result: Path, work: Path, *, opened: bool = False
) -> Counts:
    """Write the kept and the rejected rows to ``result``.

    ``rows`` has the columns of SCHEMA, ``text`` (raw) and those of the filters, which include the
    metrics if the audio was ``opened``. ``work`` is a folder for the rows, in case that they must
    be read more than once.
    """
    filters = list(of_samples(config, opened=opened))
    rows = rows.with_columns(reason=first_hit(filters))
    if needs_other_samples(config):
        rows.with_row_index("row").sink_parquet(work / "rows.parquet")
        rows = pl.scan_parquet(work / "rows.parquet")
        for mark in (mark_duplicates, mark_rates):
            rows, more = mark(rows, config)
            filters += more
    kept = rows.filter(pl.col("reason").is_null()).select(as_line())
    rejected = rows.filter(pl.col("reason").is_not_null()).select(as_line(rejection(filters)))
    groups = rows.group_by("reason").agg(
        pl.len(), pl.col("duration").sum(), pl.col("speaker_id").n_unique()
    )
    *_, counted = pl.collect_all(
        [
            kept.sink_csv(result / KEPT_FILE, lazy=True, **LINES),
            rejected.sink_csv(result / REJECTED_FILE, lazy=True, **LINES),
            groups,
        ],
        engine="streaming",
    )
    return count(counted, [each.reason for each in filters])


def rejection(filters: Sequence[Filter]) -> pl.Expr:
    """The JSON ``"reason":…,"value":…,"limit":…`` of a rejected row."""
    return pl.coalesce([rejection_of(each) for each in filters])


def rejection_of(each: Filter) -> pl.Expr:
    """The JSON of rows that this filter rejected first; null elsewhere."""
    hit = pl.col("reason") == each.reason
    before = f'"reason":{json.dumps(each.reason)},"value":'
    after = f',"limit":{json.dumps(each.limit, ensure_ascii=False)}'
    if each.value is None:
        return pl.when(hit).then(pl.lit(f"{before}null{after}"))
    decided = pl.when(hit).then(each.value)
    value = decided.cast(pl.String)
    if each.is_text:
        encoded = pl.struct(decided.alias("v")).struct.json_encode()
        value = pl.when(hit).then(encoded.str.strip_prefix('{"v":').str.strip_suffix("}"))
    return pl.concat_str(pl.lit(before), value, pl.lit(after))


def count(groups: pl.DataFrame, order: Sequence[str]) -> Counts:
    """The counts of ``groups``: rows, seconds and speakers by reason; a null reason means kept."""
    rows = {reason: row for reason, *row in groups.iter_rows()}
    kept, seconds, speakers = rows.pop(None, (0, 0.0, 0))
    reasons = {reason: rows[reason][0] for reason in order if reason in rows}
    rejected = sum(reasons.values())
    hours = round(seconds / 3600, 6)
    return Counts(kept + rejected, kept, rejected, reasons, hours, speakers)


def filter_files(program: FilterProgram, result: Path, work: Path) -> Counts:
    """Filter sample files without opening audio.

    If a line is not a sample or has no id, all samples are first rewritten to ``work`` with ids.
    Bad lines are rejected with their file and line number.
    """
    normalizer = Normalizer(program.text, program.cache or program.run_dir / "cache")
    try:
        if any(map(has_long_lines, program.samples)):
            raise ComputeError("a line is too long")  # polars would read all of it
        rows = rows_of_files(program.samples, program, normalizer)
        counts = filter_rows(rows, program.filters, result, work)
        if not NOT_WHOLE & counts.reasons.keys():
            return counts
    except ComputeError:  # polars cannot read a line
        pass
    good = work / "samples.jsonl"
    bad = list(separate_bad_lines(program.samples, good))
    counts = filter_rows(rows_of_files([good], program, normalizer), program.filters, result, work)
    with (result / REJECTED_FILE).open("a", encoding="utf-8") as rejected:
        rejected.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in bad)
    lines = Counter(line["reason"] for line in bad)
    return replace(
        counts,
        samples_in=counts.samples_in + len(bad),
        rejected=counts.rejected + len(bad),
        reasons={**lines, **counts.reasons},
    )


def rows_of_files(
    paths: Sequence[Path], program: FilterProgram, normalizer: Normalizer
) -> pl.LazyFrame:
    """The rows for :func:`filter_rows`; ``original_data`` keeps a raw text that changed."""
    rows = scan_samples(paths).with_columns(
        text="transcript",
        dataset_name=pl.when(pl.col("dataset_name") == "")
        .then(pl.lit(program.dataset_name))
        .otherwise("dataset_name"),
    )
    rows = with_transcripts(rows, program.filters, normalizer)
    changed = pl.col("transcript") != pl.col("text")
    known = pl.col("original_data").str.contains('"text":', literal=True)
    beside = with_fields("original_data", pl.struct("text"))
    return rows.with_columns(
        original_data=pl.when(changed & ~known).then(beside).otherwise("original_data")
    )


def with_fields(column: str, fields: pl.Expr) -> pl.Expr:
    """The JSON objects of a column, extended by the fields of a struct."""
    own = pl.col(column).str.strip_suffix("}")
    comma = pl.when(own == "{").then(pl.lit("")).otherwise(pl.lit(","))
    return pl.concat_str(own, comma, fields.struct.json_encode().str.strip_prefix("{"))


def main(argv: list[str] | None = None) -> None:
    """Run the program; ``argv`` is the path of its configuration."""
    program = load_config(FilterProgram, argv)
    with Run(program.run_dir) as run:
        run.finish(asdict(filter_files(program, run.result_dir, run.checkpoint_dir)))


if __name__ == "__main__":
    main()
