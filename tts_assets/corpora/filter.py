"""Filter samples: ``filtered_samples``, and any sample JSONL by hand with
``python -m tts_assets.corpora.filter run.json``.

Rows flow through polars' streaming engine: all cores read, filter and write, in memory that does
not grow with the rows. Only texts that normalization changes go through Python. The same rows give
the same bytes on any number of threads.

The filters apply in the order of the reference trainer; the first hit gives the reason. A filter
has a reason, a polars expression that is true for rejected rows, and the value and limit that
decided. A metric that a filter needs and that could not be measured, which is null, rejects the
sample. Duplicate texts and the slowest and fastest speech are determined among the samples that
pass all other filters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import polars as pl
from polars.exceptions import ComputeError
from pydantic import Field, model_validator

from tts_assets.core.artifacts import SampleManifest
from tts_assets.core.program import ProgramConfig, Run, load_config
from tts_assets.corpora.config import FilterConfig, TextConfig
from tts_assets.corpora.samples import as_line, has_long_lines, scan_samples, separate_bad_lines
from tts_assets.corpora.text import Normalizer

KEPT_FILE, REJECTED_FILE = "kept.jsonl", "rejected.jsonl"
LINES: dict[str, Any] = {"include_header": False, "quote_style": "never"}  # of sink_csv
MAX_CHARACTERS_PER_SECOND = 40.0  # faster than speech: the text belongs to another clip
DURATION = pl.col("duration")
RATE = pl.when(DURATION > 0).then(pl.col("transcript").str.len_chars() / DURATION)
SAME_TEXT = pl.col("transcript").str.to_lowercase().str.replace_all(r"[\p{P}\s]+", "")
NO_ID, NO_AUDIO = "no id", "no wav_path"
NOT_WHOLE = {NO_ID, NO_AUDIO}
# "[music]" and "(beep)" describe sounds; models must not read them as words.
SOUNDS = (
    "music|applause|laughter|laughs?|laughing|beeps?|noise|background noise|silence|inaudible|"
    "unintelligible|crosstalk|coughs?|coughing|sighs?|breath|breathing|static|ringing|foreign"
)
ANNOTATED = pl.col("text").str.contains(rf"(?i)[\[(*]\s*(?:{SOUNDS})\s*[\])*]")
UNITS = {"p808": "P.808", "snr": "SNR"}
MEASURED = {  # by configuration key: the metric's column (quality.py) and the reason
    "min_p808": ("p808", "P.808 too low"),
    "min_snr": ("snr", "too noisy"),
}


class FilterProgram(ProgramConfig):
    """``tts_assets.corpora.filter``: sample JSONL in, kept and rejected JSONL out.

    No audio is opened. The only metric available to filters is ``dnsmos_mos_ovr`` of the samples.
    ``cache`` is a folder for the grammars and results of NeMo; the default lies below ``run_dir``.
    """

    samples: tuple[Path, ...] = Field(min_length=1)
    filters: FilterConfig = FilterConfig()
    text: TextConfig = TextConfig()
    dataset_name: str = Field(default="", description="for samples without one")
    cache: Path | None = None

    @model_validator(mode="after")
    def _no_audio_is_opened(self) -> Self:
        needed = [metric for metric in self.filters.metrics if metric != "dnsmos"]
        if needed:
            raise ValueError(
                f"{', '.join(needed)}: this program opens no audio; drop the filter, or declare "
                "the samples as a corpus"
            )
        return self


@dataclass(frozen=True)
class Filter:
    """One filter; a rejected line shows ``value`` and ``limit``."""

    reason: str
    fails: pl.Expr
    value: pl.Expr | None = None
    limit: Any = None
    is_text: bool = False


def of_sources(config: FilterConfig) -> Iterator[Filter]:
    """The filters that need no transcript; only rows that pass them are normalized."""
    for reason, column in ((NO_ID, "id"), (NO_AUDIO, "wav_path")):
        yield Filter(reason, pl.col(column) == "")
    yield Filter("dropped by a correction", pl.col("dropped"))
    if not config.without_text:
        yield Filter("empty transcript", pl.col("text").str.strip_chars() == "")
    if config.allowed_languages:
        allowed = list(config.allowed_languages)
        language = pl.col("language")
        variety = [language.str.starts_with(f"{tag}-") for tag in allowed]
        hit = ~pl.any_horizontal(language.is_in(allowed), *variety)
        yield Filter("language not allowed", hit, language, ", ".join(allowed), is_text=True)
    yield above("too long", DURATION, config.max_duration)


def of_samples(config: FilterConfig, *, opened: bool = False) -> Iterator[Filter]:
    """The filters that depend on one sample alone, in order; ``opened``: its audio was measured."""
    yield from of_sources(config)
    if not config.without_text:
        text = pl.col("text")
        yield Filter("nothing to speak", pl.col("transcript") == "", text, is_text=True)
        signs = pl.col("unread")
        yield Filter("unread symbols", signs != "", signs, is_text=True)
    if opened:
        unreadable = pl.col("unreadable")
        yield Filter("audio not readable", unreadable.is_not_null(), unreadable, is_text=True)
    if not config.without_text:
        yield Filter("non-speech annotation", ANNOTATED, pl.col("text"), is_text=True)
    yield below("sample rate too low", pl.col("sample_rate"), config.min_sample_rate)
    if config.min_dnsmos is not None:
        score = pl.col("dnsmos_mos_ovr")
        known = pl.when(score > 0).then(score)
        if opened:
            yield Filter("DNSMOS not measured", known.is_null())
        yield below("DNSMOS too low", known, config.min_dnsmos)
    yield below("too short", DURATION, config.min_duration)
    for field, (column, reason) in MEASURED.items():
        limit = getattr(config, field)
        if limit is not None:
            if opened:
                yield Filter(f"{UNITS[column]} not measured", pl.col(column).is_null())
            yield below(reason, pl.col(column), limit)
    if not config.without_text:
        yield from of_texts(config, opened=opened)


def of_texts(config: FilterConfig, *, opened: bool = False) -> Iterator[Filter]:
    """The filters that compare a transcript with its speech."""
    yield above("more text than speech", RATE, MAX_CHARACTERS_PER_SECOND)
    if config.min_characters_per_second is not None:
        yield below("more speech than text", RATE, config.min_characters_per_second)
    if config.max_wer is not None:
        if opened:
            yield Filter("WER not measured", pl.col("wer").is_null())
        yield above("not what is heard", pl.col("wer"), config.max_wer)


def below(reason: str, value: pl.Expr, limit: float) -> Filter:
    """Rejects values below ``limit``."""
    return Filter(reason, value < limit, value, limit)


def above(reason: str, value: pl.Expr, limit: float) -> Filter:
    """Rejects values above ``limit``."""
    return Filter(reason, value > limit, value, limit)


def first_hit(filters: Iterable[Filter]) -> pl.Expr:
    """The reason of the first filter that a row fails; null if it passes all."""
    hits = [pl.when(each.fails).then(pl.lit(each.reason)) for each in filters]
    return pl.coalesce(*hits, pl.lit(None, pl.String))


def needs_other_samples(config: FilterConfig) -> bool:
    """Whether a filter compares samples; rows are then read more than once."""
    return (
        config.duplicate_text != "keep" or config.slowest_percent > 0 or config.fastest_percent > 0
    )


def mark_duplicates(rows: pl.LazyFrame, config: FilterConfig) -> tuple[pl.LazyFrame, list[Filter]]:
    """Rows with a ``reason`` where an earlier row has the same text, and the filter.

    Case, punctuation and spaces are ignored. Texts are compared by a hash of 64 bits, which takes
    30 bytes of memory per row.
    """
    if config.duplicate_text == "keep":
        return rows, []
    within = ["speaker_id"] if config.duplicate_text == "reject_of_speaker" else []
    passed = rows.filter(pl.col("reason").is_null()).select(
        "row", "id", text=pl.struct(SAME_TEXT, *within).hash()
    )
    texts = passed.collect(engine="streaming")
    first = texts.select("row", same_as=pl.col("id").first().over("text"), copy=repeats("text"))
    copies = first.filter("copy").drop("copy")
    rows = rows.join(copies.lazy(), on="row", how="left", maintain_order="left")
    same = pl.col("same_as")
    found = Filter("duplicate text", same.is_not_null(), same, is_text=True)
    return rows.with_columns(reason=pl.coalesce("reason", first_hit([found]))), [found]


def repeats(column: str) -> pl.Expr:
    """Whether an earlier row has the same value."""
    return ~pl.col(column).is_first_distinct()


def mark_rates(rows: pl.LazyFrame, config: FilterConfig) -> tuple[pl.LazyFrame, list[Filter]]:
    """Rows with a ``reason`` where speech is outside the percentiles of speed, and the filters."""
    slow, fast = config.slowest_percent / 100, config.fastest_percent / 100
    if not slow and not fast:
        return rows, []
    passed = rows.filter(pl.col("reason").is_null())
    limits = passed.select(
        slow=RATE.quantile(slow, "nearest"), fast=RATE.quantile(1 - fast, "nearest")
    ).collect(engine="streaming")
    lowest, highest = limits.row(0)
    if lowest is None:  # nothing passed
        return rows, []
    found = []
    if slow:
        found.append(below("among the slowest", RATE, lowest))
    if fast:
        found.append(above("among the fastest", RATE, highest))
    return rows.with_columns(reason=pl.coalesce("reason", first_hit(found))), found


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
        dropped=pl.lit(False),
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


def sample_lists(samples: Mapping[str, SampleManifest]) -> dict[str, Path]:
    """The sample list of each corpus."""
    return {name: handle.path / KEPT_FILE for name, handle in samples.items()}
