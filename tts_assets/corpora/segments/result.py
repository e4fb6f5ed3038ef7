"""What is published of a segmented corpus: its clips as utterances, and where all the time went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from tts_assets.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.artifacts import RawCorpus, SegmentFacts
from tts_assets.corpora.index import ID_DIGITS, SCHEMA, UTTERANCES_FILE, Utterance
from tts_assets.corpora.segments.accounting import KEPT, SPANS, SPANS_FILE, corpus_facts
from tts_assets.corpora.segments.card import CARD_FILE, card, write_listening
from tts_assets.corpora.segments.config import SegmentProgram
from tts_assets.corpora.segments.recording import NO_SPEECH, Span

DUPLICATE = "duplicate audio"


@dataclass(frozen=True)
class Recording:
    """What became of one recording: its spans, one after the other, all of it."""

    language: str
    sample_rate: int
    spans: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recording:
        spans = tuple(Span(**span) for span in value["spans"])
        return cls(value["language"], value["sample_rate"], spans)


def write_result(
    corpus: RawCorpus,
    recordings: Sequence[tuple[Utterance, Recording]],
    program: SegmentProgram,
    result: Path,
) -> SegmentFacts:
    """Write ``utterances.parquet`` and what goes with it into ``result``."""
    found = _each_clip_once(recordings)
    rows = sorted((_utterance(*item) for item in found if item[2].clip), key=lambda row: row.id)
    set_aside = [_set_aside(*item) for item in found if item[2].reason not in ("", NO_SPEECH)]
    spans = pl.DataFrame([_span_row(*item) for item in found], schema=SPANS)
    facts = SegmentFacts(
        **{
            **corpus_facts(corpus),
            "audio_pool": str(program.audio_pool),
            "utterances": len(rows),
            "set_aside": len(set_aside),
            "hours": round(sum(row.duration for row in rows) / 3600, 6),
            "speakers": len({row.speaker for row in rows}),
            "recordings": len(recordings),
            "recorded_hours": round(sum(row.duration for row, _ in recordings) / 3600, 6),
            "seconds": seconds_by_reason(spans),
        }
    )
    pl.DataFrame([vars(row) for row in rows], schema=SCHEMA).write_parquet(result / UTTERANCES_FILE)
    spans.write_parquet(result / SPANS_FILE)
    write_set_aside(result / SET_ASIDE_FILE, set_aside)
    (result / CARD_FILE).write_text(card(rows, facts), encoding="utf-8")
    write_listening(result, rows, facts)
    return facts


def seconds_by_reason(spans: pl.DataFrame) -> dict[str, float]:
    """Seconds in clips (``kept``), and by each reason why not, the most first."""
    seconds = (pl.col("end") - pl.col("start")) / pl.col("sample_rate")
    sums = spans.group_by("reason").agg(seconds.sum().round(3).alias("seconds"))
    ordered = sums.sort([-pl.col("seconds"), pl.col("reason")]).iter_rows()
    return {KEPT: 0.0, **dict(ordered)}


def _each_clip_once(
    recordings: Sequence[tuple[Utterance, Recording]],
) -> list[tuple[Utterance, Recording, Span]]:
    """All spans in the order of the recordings; a clip with the bytes of an earlier one is set
    aside."""
    seen: set[str] = set()
    found = []
    for row, recording in recordings:
        for span in recording.spans:
            if span.clip in seen:
                span = replace(span, reason=DUPLICATE, clip="")
            elif span.clip:
                seen.add(span.clip)
            found.append((row, recording, span))
    return found


def _utterance(row: Utterance, recording: Recording, span: Span) -> Utterance:
    """A clip as a row of the index, with the way back to its recording."""
    extra = json.loads(row.extra)
    original = {
        **extra.get("original_data", {}),
        "recording": row.audio,
        "recording_sha256": row.audio_sha256,
        "start": _seconds(span.start, recording),
        "end": _seconds(span.end, recording),
        "gain_db": span.gain_db,
        "confidence": span.confidence,
    }
    if span.speaker_similarity is not None:
        original["speaker_similarity"] = span.speaker_similarity
    return Utterance(
        id=span.sha256[:ID_DIGITS],
        audio=span.clip,
        pooled=True,
        audio_sha256=span.sha256,
        duration=_seconds(span.end - span.start, recording),
        sample_rate=recording.sample_rate,
        channels=1,
        speaker=row.speaker,
        language=recording.language,
        text=span.text,
        licence=row.licence,
        extra=json.dumps({**extra, "original_data": original}, sort_keys=True, ensure_ascii=False),
    )


def _set_aside(row: Utterance, recording: Recording, span: Span) -> SetAside:
    start, end = (_seconds(frame, recording) for frame in (span.start, span.end))
    return SetAside(f"{row.audio} from {start:.2f} to {end:.2f} s", span.reason, span.text)


def _span_row(row: Utterance, recording: Recording, span: Span) -> dict[str, Any]:
    return {
        "recording": row.id,
        "start": span.start,
        "end": span.end,
        "sample_rate": recording.sample_rate,
        "reason": span.reason or KEPT,
        "clip": span.sha256[:ID_DIGITS] if span.clip else "",
        "text": span.text,
        "confidence": span.confidence,
        "speaker_similarity": span.speaker_similarity,
    }


def _seconds(frames: int, recording: Recording) -> float:
    return round(frames / recording.sample_rate, 6)
