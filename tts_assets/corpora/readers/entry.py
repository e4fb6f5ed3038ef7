"""What a reader yields: one utterance as the corpus describes it, before its audio was opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tts_assets.accounting import SetAside
from tts_assets.corpora.config import CorpusConfig

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".g722"}


@dataclass(frozen=True)
class Entry:
    """``where`` names the line or file in messages; ``extra`` are fields of the sample schema."""

    audio: Path
    where: str
    text: str
    speaker: str
    language: str
    licence: str
    extra: dict[str, Any] = field(default_factory=dict)


def inside(root: Path, relative: str, where: str) -> Path | SetAside:
    """The file ``relative`` names below ``root``; set aside if it leads out of the corpus."""
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        detail = f"{relative} lies outside {root}; move it there, or declare its folder as a corpus"
        return SetAside(where, "path outside the corpus", detail)
    return path


def text_file(path: Path, where: str) -> str | SetAside:
    """What stands in a transcript; set aside if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        return SetAside(where, "text is not UTF-8", f"{path.name}: {error}")


def entry(
    config: CorpusConfig, audio: Path | SetAside, where: str, text: str, **fields: Any
) -> Entry | SetAside:
    """An entry with the corpus' defaults for what is not said; a set-aside path stays one."""
    if isinstance(audio, SetAside):
        return audio
    return Entry(
        audio=audio,
        where=where,
        text=text,
        speaker=fields.pop("speaker", "") or config.speaker,
        language=fields.pop("language", "") or config.language,
        licence=fields.pop("licence", "") or config.licence,
        extra=fields,
    )
