"""The published files of ``speech_segments``: utterances, spans, dataset card and notebook.

``utterances.parquet`` has a row per clip. ``spans.parquet`` says for every frame of every
recording in which clip it is, or why it is in none; :func:`account` checks that it is complete.
A corpus of utterances has no spans: its files are passed on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import soundfile

from tts_assets.audio_models.whisper import model_folder
from tts_assets.core.accounting import SET_ASIDE_FILE, SetAside, write_set_aside
from tts_assets.core.artifacts import (
    ArtifactError,
    CorpusFacts,
    RawCorpus,
    SegmentFacts,
    SpeechSegments,
    sha256_file,
)
from tts_assets.core.audio import read_wave
from tts_assets.core.config import digest_of
from tts_assets.core.hub import model_digest
from tts_assets.core.metadata import NOTEBOOK_FILE, NotebookClip, Section, literal, write_notebook
from tts_assets.corpora.index import ID_DIGITS, SCHEMA, UTTERANCES_FILE, Utterance
from tts_assets.corpora.samples import AudioFolders
from tts_assets.corpora.segments import SegmentConfig, SegmentProgram
from tts_assets.corpora.segments.recording import NO_SPEECH, Span

SPANS_FILE, CARD_FILE = "spans.parquet", "card.md"
KEPT, DUPLICATE = "kept", "duplicate audio"
SPANS = {
    "recording": pl.String,  # its id in raw_corpus
    "start": pl.Int64,  # frames
    "end": pl.Int64,
    "sample_rate": pl.Int32,
    "reason": pl.String,  # why it is in no clip; "kept": it is one
    "clip": pl.String,  # its id
    "text": pl.String,
    "confidence": pl.Float64,
    "speaker_similarity": pl.Float64,  # of the lowest window
    "speaker": pl.String,  # the number that diarization gave it
}
CLIPS_SHOWN = 4  # per category
HIGHEST_RATE = 24_000  # Hz; sixteen clips stay below 3 MB
LENGTHS = {"short": (0.0, 4.0), "medium": (4.0, 7.0), "long": (7.0, float("inf"))}  # seconds
QUESTION = "question"
QUESTION_MARKS = ("?", "？", "؟")

Numbers = dict[str, int | float]


def source_digests(config: SegmentConfig, root: Path) -> dict[str, str]:
    """Digests of the ASR model and of the reference recording. Raises FileNotFoundError."""
    found = {"model": model_digest(model_folder(config.model, root))}
    if config.speaker:
        reference = root / config.speaker.reference
        if not reference.is_file():
            raise FileNotFoundError(
                f"segments.speaker.reference: there is no {reference}; name a recording of the "
                "wanted speaker"
            )
        found["reference"] = sha256_file(reference)
    return found


def pass_through(corpus: RawCorpus, result: Path) -> SegmentFacts:
    """Links the files of a corpus of utterances; copies where hard links are not possible."""
    for name in (UTTERANCES_FILE, SET_ASIDE_FILE):
        (result / name).unlink(missing_ok=True)  # left by a build that was killed
        try:
            os.link(corpus.path / name, result / name)
        except OSError:  # another filesystem, or one without links
            shutil.copyfile(corpus.path / name, result / name)
    return SegmentFacts(**corpus_facts(corpus), recordings=0, recorded_hours=0.0)


def corpus_facts(corpus: RawCorpus) -> dict[str, Any]:
    """The facts of a raw corpus that its segments share."""
    return {name: getattr(corpus.facts, name) for name in CorpusFacts.model_fields}


@dataclass(frozen=True)
class SegmentedRecording:
    """The result of one recording: contiguous spans that cover all of it."""

    language: str
    sample_rate: int
    spans: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON value that the cache holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SegmentedRecording:
        """The inverse of :meth:`to_json`."""
        spans = tuple(Span(**span) for span in value["spans"])
        return cls(value["language"], value["sample_rate"], spans)


def write_result(
    corpus: RawCorpus,
    recordings: Sequence[tuple[Utterance, SegmentedRecording]],
    program: SegmentProgram,
    result: Path,
) -> SegmentFacts:
    """Write ``utterances.parquet`` and the other published files to ``result``."""
    found = _each_clip_once(recordings)
    rows = sorted((_utterance(*item) for item in found if item[2].clip), key=lambda row: row.id)
    set_aside = [_set_aside(*item) for item in found if item[2].reason not in ("", NO_SPEECH)]
    spans = pl.DataFrame([_span_row(*item) for item in found], schema=SPANS)
    facts = SegmentFacts(
        **{
            **corpus_facts(corpus),
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
    write_listening(result, rows, facts, AudioFolders.of_corpus(corpus, program.audio_pool))
    return facts


def seconds_by_reason(spans: pl.DataFrame) -> dict[str, float]:
    """Seconds in clips (``kept``) and seconds set aside by reason, in descending order."""
    seconds = (pl.col("end") - pl.col("start")) / pl.col("sample_rate")
    sums = spans.group_by("reason").agg(seconds.sum().round(3).alias("seconds"))
    ordered = sums.sort([-pl.col("seconds"), pl.col("reason")]).iter_rows()
    return {KEPT: 0.0, **dict(ordered)}


def _each_clip_once(
    recordings: Sequence[tuple[Utterance, SegmentedRecording]],
) -> list[tuple[Utterance, SegmentedRecording, Span]]:
    """All spans in the order of the recordings; a clip with the bytes of an earlier one is none."""
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


def _utterance(row: Utterance, recording: SegmentedRecording, span: Span) -> Utterance:
    """A clip as a row of the index; ``original_data`` names its recording and position there."""
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
        speaker=speaker_name(row, span),
        language=recording.language,
        text=span.text,
        licence=row.licence,
        extra=json.dumps({**extra, "original_data": original}, sort_keys=True, ensure_ascii=False),
    )


def speaker_name(row: Utterance, span: Span) -> str:
    """The speaker of a clip. Speakers of different recordings are not compared."""
    if not span.speaker:
        return row.speaker
    return "-".join(part for part in (row.speaker, Path(row.audio).stem, span.speaker) if part)


def _set_aside(row: Utterance, recording: SegmentedRecording, span: Span) -> SetAside:
    start, end = (_seconds(frame, recording) for frame in (span.start, span.end))
    return SetAside(f"{row.audio} from {start:.2f} to {end:.2f} s", span.reason, span.text)


def _span_row(row: Utterance, recording: SegmentedRecording, span: Span) -> dict[str, Any]:
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
        "speaker": span.speaker,
    }


def _seconds(frames: int, recording: SegmentedRecording) -> float:
    return round(frames / recording.sample_rate, 6)


def account(corpus: RawCorpus, segments: SpeechSegments) -> Numbers:
    """Counts and seconds recorded, kept and set aside. Raises ArtifactError if they do not add up.

    The spans of each recording must begin at frame 0, be contiguous, and end with the recording
    (within one frame of its duration). The kept spans must be the clips, each once.
    """
    rows = pl.read_parquet(segments.path / UTTERANCES_FILE)
    if rows["id"].n_unique() != len(rows):
        raise ArtifactError(f"{segments.path}: an utterance occurs twice")
    recordings = pl.read_parquet(corpus.path / UTTERANCES_FILE)
    if not (segments.path / SPANS_FILE).is_file():
        if not rows.equals(recordings):
            raise ArtifactError(f"{segments.path} does not hold the rows of {corpus.path}")
        return {"utterances": len(rows)}
    spans = pl.read_parquet(segments.path / SPANS_FILE)
    _check_that_spans_cover(recordings, spans, segments)
    kept = spans.filter(pl.col("reason") == KEPT)
    if sorted(kept["clip"]) != sorted(rows["id"]):
        raise ArtifactError(f"{segments.path}: the clips are not those of {SPANS_FILE}")
    seconds = (spans["end"] - spans["start"]) / spans["sample_rate"]
    is_kept = spans["reason"] == KEPT
    return {
        "recordings": len(recordings),
        "clips": len(rows),
        "seconds_recorded": round(float(recordings["duration"].sum()), 3),
        "seconds_kept": round(float(seconds.filter(is_kept).sum()), 3),
        "seconds_set_aside": round(float(seconds.filter(~is_kept).sum()), 3),
    }


def _check_that_spans_cover(
    recordings: pl.DataFrame, spans: pl.DataFrame, segments: SpeechSegments
) -> None:
    before = pl.col("end").shift(1, fill_value=0).over("recording")
    holes = spans.filter((pl.col("start") != before) | (pl.col("end") <= pl.col("start")))
    if len(holes):
        first = holes.row(0, named=True)
        raise ArtifactError(
            f"{segments.path}: recording {first['recording']} is not accounted for before frame "
            f"{first['start']}; materialize speech_segments again"
        )
    ends = spans.group_by("recording").agg(pl.col("end").max(), pl.col("sample_rate").first())
    joined = recordings.join(ends, left_on="id", right_on="recording", how="left", suffix="_span")
    frames = (pl.col("duration") * pl.col("sample_rate")).round()
    short = joined.filter(((frames - pl.col("end")).abs() > 1) | pl.col("end").is_null())
    if len(short):
        first = short.row(0, named=True)
        raise ArtifactError(
            f"{segments.path}: of {first['audio']}, {first['duration']} s, only "
            f"{first['end'] or 0} frames are accounted for; materialize speech_segments again"
        )


def categories(rows: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """The clips by length; the category of questions repeats those whose text is a question."""
    by_length = {
        name: [row for row in rows if low <= row.duration < high]
        for name, (low, high) in LENGTHS.items()
    }
    questions = [row for row in rows if row.text.rstrip("\"'”’») ").endswith(QUESTION_MARKS)]
    return {**by_length, QUESTION: questions}


def card(rows: Sequence[Utterance], facts: SegmentFacts) -> str:
    """The dataset card in Markdown: the clips, their speaking rates, and the time by reason."""
    recorded = sum(facts.seconds.values())
    lines = [
        f"# {literal(facts.corpus)}",
        "",
        f"{len(rows)} clips, {_minutes(_card_seconds(rows))} min, from {facts.recordings} "
        f"recordings of {_minutes(recorded)} min. "
        f"Language: {', '.join(sorted({r.language for r in rows}))}. "
        f"Licence: {literal(facts.licence)}.",
        "",
        "| clips | length | samples | minutes | share |",
        "|---|---|---:|---:|---:|",
    ]
    for name, chosen in categories(rows).items():
        share = _card_seconds(chosen) / max(_card_seconds(rows), 1e-9)
        lines.append(
            f"| {name} | {_length(name)} | {len(chosen)} | {_minutes(_card_seconds(chosen))} | "
            f"{share:.0%} |"
        )
    lines += [f"| **all** | | **{len(rows)}** | **{_minutes(_card_seconds(rows))}** | 100% |", ""]
    lines += ["| rate of speech | mean | slowest tenth | fastest tenth |", "|---|---:|---:|---:|"]
    for name, rates in rates_of_speech(rows).items():
        low, high = (_quantile(rates, share) for share in (0.1, 0.9))
        mean = sum(rates) / max(len(rates), 1)
        lines.append(f"| {name} | {mean:.1f} | {low:.1f} | {high:.1f} |")
    lines += ["", "| recorded time | minutes | share |", "|---|---:|---:|"]
    for reason, seconds in facts.seconds.items():
        lines.append(f"| {reason} | {_minutes(seconds)} | {seconds / max(recorded, 1e-9):.1%} |")
    return "\n".join(lines) + "\n"


def rates_of_speech(rows: Iterable[Utterance]) -> dict[str, list[float]]:
    """Words per minute and characters per second of each clip, margins and pauses included."""
    rows = list(rows)
    return {
        "words a minute": [60 * len(row.text.split()) / row.duration for row in rows],
        "characters a second": [len(row.text) / row.duration for row in rows],
    }


def write_listening(
    folder: Path, rows: Sequence[Utterance], facts: SegmentFacts, audio: AudioFolders
) -> None:
    """Write ``listening.ipynb`` with some clips of each category, chosen by a hash of their ids."""
    sections = []
    for name, chosen in categories(rows).items():
        some = sorted(chosen, key=lambda row: digest_of(row.id))[:CLIPS_SHOWN]
        clips = [_played(row, audio, folder) for row in some]
        title = f"{name.capitalize()} ({_length(name)}): {len(clips)} of {len(chosen)}"
        sections.append(Section(title, clips))
    write_notebook(folder / NOTEBOOK_FILE, facts.corpus, sections)
    for section in sections:
        for played in section.clips:
            played.path.unlink(missing_ok=True)  # a question is in two sections


def _played(row: Utterance, audio: AudioFolders, folder: Path) -> NotebookClip:
    """A clip in 16 bits and at a rate that keeps the notebook small."""
    rate = min(row.sample_rate, HIGHEST_RATE)
    path = folder / f"{row.id}.flac"
    soundfile.write(path, read_wave(row.path(audio), rate), rate)
    caption = [row.speaker, f"{row.duration:.1f} s", f"{row.sample_rate} Hz", row.id]
    return NotebookClip(row.text, " · ".join(part for part in caption if part), path)


def _length(category: str) -> str:
    if category == QUESTION:
        return "ends with ?"
    low, high = LENGTHS[category]
    if not low:
        return f"below {high:g} s"
    return f"{low:g} to {high:g} s" if high < float("inf") else f"from {low:g} s"


def _card_seconds(rows: Iterable[Utterance]) -> float:
    return sum(row.duration for row in rows)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))] if values else 0.0
