"""What a reader yields: one utterance as the corpus describes it, before its audio was opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import MANNERS, CorpusConfig


@dataclass(frozen=True)
class Embedded:
    """Audio inside a Parquet file: the bytes in row ``row`` (from 0) of ``column``."""

    file: Path
    column: str
    row: int


@dataclass(frozen=True)
class Part:
    """A part of a recording, in seconds; ``channels`` of its file from 0, or all if empty."""

    file: Path
    start: float
    duration: float
    channels: tuple[int, ...] = ()


Audio = Path | Embedded | Part  # a path: a file that is one utterance as it lies


@dataclass(frozen=True)
class Entry:
    """``where`` names the line or file in messages; ``extra`` are fields of the sample schema."""

    audio: Audio
    where: str
    text: str
    speaker: str
    language: str
    licence: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The file that holds the audio, alone or among other."""
        return file_of(self.audio)


def file_of(audio: Audio) -> Path:
    return audio if isinstance(audio, Path) else audio.file


def entry(
    config: CorpusConfig,
    audio: Audio | SetAside,
    where: str,
    text: str | SetAside,
    **fields: Any,
) -> Entry | SetAside:
    """An entry with the corpus' defaults for what is not said; a path or a text that was set
    aside stays so."""
    if isinstance(audio, SetAside):
        return audio
    if isinstance(text, SetAside):
        return text
    manners = {name: fields.get(name) or getattr(config, name) for name in MANNERS}
    fields |= {name: manner for name, manner in manners.items() if manner}
    return Entry(
        audio=audio,
        where=where,
        text=text,
        speaker=fields.pop("speaker", "") or config.speaker,
        language=fields.pop("language", "") or config.language,
        licence=fields.pop("licence", "") or config.licence,
        extra=fields,
    )
