"""The dataset card of a segmented corpus, and a notebook in which one hears it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

from tts_assets.artifacts import SegmentFacts
from tts_assets.audio import read_wave
from tts_assets.config import digest_of
from tts_assets.corpora.index import Utterance
from tts_assets.notebook import NOTEBOOK_FILE, Clip, Section, write_notebook

CARD_FILE = "card.md"
CLIPS_SHOWN = 4  # of each category
HIGHEST_RATE = 24_000  # Hz; sixteen clips stay below 3 MB
LENGTHS = {"short": (0.0, 4.0), "medium": (4.0, 7.0), "long": (7.0, float("inf"))}  # seconds
QUESTION = "question"
QUESTION_MARKS = ("?", "？", "؟")


def categories(rows: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """The clips by length, and once more those whose text is a question."""
    by_length = {
        name: [row for row in rows if low <= row.duration < high]
        for name, (low, high) in LENGTHS.items()
    }
    questions = [row for row in rows if row.text.rstrip("\"'”’») ").endswith(QUESTION_MARKS)]
    return {**by_length, QUESTION: questions}


def card(rows: Sequence[Utterance], facts: SegmentFacts) -> str:
    """The card as Markdown: what the clips are, and where the rest of the recordings went."""
    recorded = sum(facts.seconds.values())
    lines = [
        f"# {facts.corpus}",
        "",
        f"{len(rows)} clips, {_minutes(_seconds(rows))} min, from {facts.recordings} recordings of "
        f"{_minutes(recorded)} min. Language: {', '.join(sorted({r.language for r in rows}))}. "
        f"Licence: {facts.licence}.",
        "",
        "| clips | length | samples | minutes | share |",
        "|---|---|---:|---:|---:|",
    ]
    for name, chosen in categories(rows).items():
        share = _seconds(chosen) / max(_seconds(rows), 1e-9)
        lines.append(
            f"| {name} | {_length(name)} | {len(chosen)} | {_minutes(_seconds(chosen))} | "
            f"{share:.0%} |"
        )
    lines += [f"| **all** | | **{len(rows)}** | **{_minutes(_seconds(rows))}** | 100% |", ""]
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
    """Words a minute and characters a second of each clip, its margins and pauses included."""
    rows = list(rows)
    return {
        "words a minute": [60 * len(row.text.split()) / row.duration for row in rows],
        "characters a second": [len(row.text) / row.duration for row in rows],
    }


def write_listening(folder: Path, rows: Sequence[Utterance], facts: SegmentFacts) -> None:
    """Write ``listening.ipynb``: some clips of each category, chosen by a hash of their ids."""
    sections = []
    for name, chosen in categories(rows).items():
        some = sorted(chosen, key=lambda row: digest_of(row.id))[:CLIPS_SHOWN]
        clips = [_played(row, facts, folder) for row in some]
        title = f"{name.capitalize()} ({_length(name)}): {len(clips)} of {len(chosen)}"
        sections.append(Section(title, clips))
    write_notebook(folder / NOTEBOOK_FILE, facts.corpus, sections)
    for section in sections:
        for played in section.clips:
            played.path.unlink(missing_ok=True)  # a question is in two sections


def _played(row: Utterance, facts: SegmentFacts, folder: Path) -> Clip:
    """A clip in 16 bits and at a rate that keeps the notebook small."""
    rate = min(row.sample_rate, HIGHEST_RATE)
    path = folder / f"{row.id}.flac"
    soundfile.write(path, read_wave(row.path(facts), rate), rate)
    caption = [row.speaker, f"{row.duration:.1f} s", f"{row.sample_rate} Hz", row.id]
    return Clip(row.text, " · ".join(part for part in caption if part), path)


def _length(category: str) -> str:
    if category == QUESTION:
        return "ends with ?"
    low, high = LENGTHS[category]
    if not low:
        return f"below {high:g} s"
    return f"{low:g} to {high:g} s" if high < float("inf") else f"from {low:g} s"


def _seconds(rows: Iterable[Utterance]) -> float:
    return sum(row.duration for row in rows)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))] if values else 0.0
