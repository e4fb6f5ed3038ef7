"""The sample schema of the reference trainer: one JSON object a line, read and written here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from tts_assets.config import Config


class Sample(Config):
    """One utterance as training sees it. ``transcript`` is normalized; the raw text, the audio's
    SHA-256 and the licence stand in ``original_data``. Duration in seconds, rate in Hz."""

    id: str
    wav_path: str
    transcript: str
    language: str = "unknown"
    duration: float = -1.0
    sample_rate: int = -1
    speaker_id: str = ""
    emotion: str = ""
    style: str = ""
    voice_description: str = ""
    sound_effect: str = ""
    dnsmos_mos_ovr: float = 0.0
    dataset_name: str = ""
    original_data: dict[str, Any] = Field(default_factory=dict)

    def to_line(self) -> str:
        return json.dumps(self.model_dump(), ensure_ascii=False) + "\n"


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    path.write_text("".join(sample.to_line() for sample in samples), encoding="utf-8")


def read_samples(path: Path) -> Iterator[Sample]:
    """Samples of a published file, a line at a time."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            yield Sample.parse(json.loads(line), f"{path}:{number}")
