"""The sample schema of the reference trainer: one JSON object a line, read and written here.

One at a time as :class:`Sample`; by the million as rows of polars (``SCHEMA``), in which
``original_data`` is the text of a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field

from tts_assets.core.config import Config

SCHEMA = {
    "id": pl.String,
    "wav_path": pl.String,
    "transcript": pl.String,
    "language": pl.String,
    "duration": pl.Float64,
    "sample_rate": pl.Int64,
    "speaker_id": pl.String,
    "emotion": pl.String,
    "style": pl.String,
    "voice_description": pl.String,
    "sound_effect": pl.String,
    "dnsmos_mos_ovr": pl.Float64,
    "dataset_name": pl.String,
    "original_data": pl.String,
}
FIELDS = {**SCHEMA, "original_data": pl.Object}  # as they stand in a line
ABOUT_SAMPLES = {
    "wav_path": "path of the audio",
    "transcript": "normalized text",
    "duration": "seconds; -1: unknown",
    "sample_rate": "Hz, of the file; -1: unknown",
    "voice_description": "in words, of the speaker",
    "dnsmos_mos_ovr": "DNSMOS, overall quality from 1 to 5; 0: unknown",
    "dataset_name": "the corpus",
    "original_data": "the raw text, the audio's SHA-256, the licence, and what else was known",
}
HEAD = tuple(SCHEMA)[:-1]  # the fields before original_data
DEFAULTS = {"language": "unknown", "duration": -1.0, "sample_rate": -1, "dnsmos_mos_ovr": 0.0}


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


def scan_samples(paths: Sequence[Path]) -> pl.LazyFrame:
    """Rows of sample files in the columns of SCHEMA, defaults filled in. Other keys are left out.

    Collecting raises ``polars.exceptions.ComputeError`` at a line that ``bad_lines.py`` would
    name.
    """
    lines = pl.scan_lines(list(paths), name="line").filter(pl.col("line").str.strip_chars() != "")
    rows = pl.concat([pl.scan_ndjson(list(paths), schema=SCHEMA), lines], how="horizontal")
    # polars 2.1 forgets to escape what it gives as the text of an object
    escaped = pl.when(pl.col("line").str.contains("\\", literal=True)).then("line")
    own = pl.coalesce(escaped.str.json_path_match("$.original_data"), "original_data")
    defaults = [pl.col(name).fill_null(DEFAULTS.get(name, "")) for name in HEAD]
    return rows.select(*defaults, original_data=own.fill_null("{}"))


def as_line(more: pl.Expr | None = None) -> pl.Expr:
    """A row as its line of JSON: the keys in the order of SCHEMA, text unescaped, no spaces.

    ``original_data`` and the further keys ``more`` are JSON text; NaN becomes null.
    """
    head = pl.struct(HEAD).struct.json_encode().str.strip_suffix("}")
    end = [] if more is None else [pl.lit(","), more]
    return pl.concat_str(head, pl.lit(',"original_data":'), "original_data", *end, pl.lit("}"))
