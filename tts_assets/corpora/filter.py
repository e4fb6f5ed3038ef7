"""Samples in, kept and rejected samples out: ``filtered_samples``, and by hand of any JSONL,
``python -m tts_assets.corpora.filter run.json``.

Rows flow through polars' streaming engine: the JSON is read, filtered and written by all cores
in memory that does not grow with it. Only texts that change when spoken go through Python. The
same rows give the same bytes on any number of threads.

Sample files in which a line is no sample, or has no id: they are written anew without it.

Other files are never read this way: polars refuses a bad line, and only then is it worth the time
of Python to look at each. An id that is missing becomes the digest of audio path and transcript.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
from polars.exceptions import ComputeError

from tts_assets.core.config import ConfigError
from tts_assets.core.program import Run, load_config
from tts_assets.corpora.config import FilterConfig, FilterProgram
from tts_assets.corpora.filters import (
    NOT_WHOLE,
    Filter,
    first_hit,
    looks_around,
    mark_duplicates,
    mark_rates,
    of_samples,
    of_sources,
)
from tts_assets.corpora.normalizer import Normalizer
from tts_assets.corpora.samples import SCHEMA, Sample, as_line, scan_samples

SHOWN = 200  # characters of a bad line
ID_DIGITS = 16


class BadLine(ValueError):
    """A line that is no sample; ``reason`` is short and countable."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def separate(paths: Sequence[Path], good: Path) -> Iterator[dict[str, Any]]:
    """Write the samples of all files to ``good``; yield where each bad line stands and why."""
    with good.open("w", encoding="utf-8") as kept:
        for path in paths:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    text = line.removeprefix(b"\xef\xbb\xbf").strip()
                    if not text:
                        continue
                    try:
                        kept.write(json.dumps(check_line(text), ensure_ascii=False) + "\n")
                    except BadLine as bad:
                        yield {
                            "reason": bad.reason,
                            "where": f"{path}:{number}",
                            "detail": bad.detail,
                            "line": text.decode("utf-8", "replace")[:SHOWN],
                        }


def check_line(line: bytes) -> dict[str, Any]:
    """The fields of the schema that a line has. Raises :class:`BadLine`."""
    try:
        sample = json.loads(
            line.decode(), parse_constant=_no_number, parse_int=_int, parse_float=_float
        )
    except UnicodeDecodeError as error:
        raise BadLine("not UTF-8", str(error)) from None
    except ValueError as error:
        raise BadLine("not JSON", str(error)) from None
    if not isinstance(sample, dict):
        raise BadLine("not a JSON object", f"a {type(sample).__name__}")
    fields = {key: sample[key] for key in SCHEMA if sample.get(key) is not None}
    if not fields.get("wav_path"):
        raise BadLine("no wav_path", "every sample needs the path of its audio")
    try:
        checked = Sample.parse({"id": "", "transcript": "", **fields}, "sample")
    except ConfigError as error:
        raise BadLine("a field of another type", str(error)) from None
    sample = checked.model_dump(include=set(fields) - {"id"})
    return {"id": checked.id or identify(checked), **sample}


def identify(sample: Sample) -> str:
    return hashlib.sha256(f"{sample.wav_path}\0{sample.transcript}".encode()).hexdigest()[
        :ID_DIGITS
    ]


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _int(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{text} has more than 64 bits; write it as a string")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


KEPT_FILE, REJECTED_FILE = "kept.jsonl", "rejected.jsonl"
LINES: dict[str, Any] = {"include_header": False, "quote_style": "never"}  # lines as they are


@dataclass(frozen=True)
class Counts:
    """What became of the samples; ``reasons`` in the order of the filters."""

    samples_in: int
    kept: int
    rejected: int
    reasons: dict[str, int]
    hours: float
    speakers: int


def spoken(rows: pl.LazyFrame, config: FilterConfig, normalizer: Normalizer) -> pl.LazyFrame:
    """Rows whose ``transcript`` is the normalized ``text``, where the first filters pass; the
    others keep the text as it is."""
    passes = first_hit(of_sources(config)).is_null() & (pl.col("text") != "")
    return normalizer.rows(rows, passes)


def filter_rows(
    rows: pl.LazyFrame, config: FilterConfig, result: Path, work: Path, *, opened: bool = False
) -> Counts:
    """Write the kept and the rejected of ``rows`` to ``result``.

    ``rows``: the columns of SCHEMA, ``text`` (raw), and those that the filters look at, of which
    metrics are there if the audio was ``opened``.
    ``work``: a folder for the rows, where they must be read more than once.
    """
    filters = list(of_samples(config, opened=opened))
    rows = rows.with_columns(reason=first_hit(filters))
    if looks_around(config):
        rows.with_row_index("row").sink_parquet(work / "rows.parquet")
        rows = pl.scan_parquet(work / "rows.parquet")
        for mark in (mark_duplicates, mark_rates):
            rows, more = mark(rows, config)
            filters += more
    kept = rows.filter(pl.col("reason").is_null()).select(as_line())
    rejected = rows.filter(pl.col("reason").is_not_null()).select(as_line(figures(filters)))
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


def figures(filters: Sequence[Filter]) -> pl.Expr:
    """``"reason":…,"value":…,"limit":…`` of a rejected row: what decided, as JSON."""
    return pl.coalesce([figures_of(each) for each in filters])


def figures_of(each: Filter) -> pl.Expr:
    """The figures where this filter was the first to hit; null elsewhere, which costs nothing."""
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
    """``groups``: rows, seconds and speakers by reason; no reason: kept."""
    rows = {reason: row for reason, *row in groups.iter_rows()}
    kept, seconds, speakers = rows.pop(None, (0, 0.0, 0))
    reasons = {reason: rows[reason][0] for reason in order if reason in rows}
    rejected = sum(reasons.values())
    hours = round(seconds / 3600, 6)
    return Counts(kept + rejected, kept, rejected, reasons, hours, speakers)


# --- any sample JSONL, by hand -------------------------------------------------------------------


def filter_files(program: FilterProgram, result: Path, work: Path) -> Counts:
    """Filter sample files without opening audio. If a line is no sample, or has no id, all are
    written anew to ``work`` with ids; bad lines are rejected with their place."""
    normalizer = Normalizer(program.text, program.cache or program.run_dir / "cache")
    try:
        rows = rows_of_files(program.samples, program, normalizer)
        counts = filter_rows(rows, program.filters, result, work)
        if not NOT_WHOLE & counts.reasons.keys():
            return counts
    except ComputeError:  # a line that polars does not read
        pass
    good = work / "samples.jsonl"
    bad = list(separate(program.samples, good))
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
    """Samples as :func:`filter_rows` wants them; a raw text that changed stays beside."""
    rows = scan_samples(paths).with_columns(
        text="transcript",
        dataset_name=pl.when(pl.col("dataset_name") == "")
        .then(pl.lit(program.dataset_name))
        .otherwise("dataset_name"),
    )
    rows = spoken(rows, program.filters, normalizer)
    changed = pl.col("transcript") != pl.col("text")
    known = pl.col("original_data").str.contains('"text":', literal=True)
    beside = with_fields("original_data", pl.struct("text"))
    return rows.with_columns(
        original_data=pl.when(changed & ~known).then(beside).otherwise("original_data")
    )


def with_fields(column: str, fields: pl.Expr) -> pl.Expr:
    """The JSON objects of a column with the fields of a struct after their own."""
    own = pl.col(column).str.strip_suffix("}")
    comma = pl.when(own == "{").then(pl.lit("")).otherwise(pl.lit(","))
    return pl.concat_str(own, comma, fields.struct.json_encode().str.strip_prefix("{"))


def main(argv: list[str] | None = None) -> None:
    program = load_config(FilterProgram, argv)
    with Run(program.run_dir) as run:
        run.finish(asdict(filter_files(program, run.result_dir, run.checkpoint_dir)))


if __name__ == "__main__":
    main()
