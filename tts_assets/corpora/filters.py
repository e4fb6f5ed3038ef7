"""The filters of samples, in the order of the reference trainer; the first hit gives the reason.

A filter has a reason, a polars expression that is true for rejected rows, and the value and limit
that decided. A metric that a filter needs and that could not be measured, which is null, rejects
the sample. Duplicate texts and the
slowest and fastest speech are determined among the samples that pass all other filters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from tts_assets.corpora.config import FilterConfig

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
