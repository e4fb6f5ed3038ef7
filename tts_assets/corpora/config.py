"""What ``dagster_project.toml`` may say of corpora and filters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tts_assets.config import Config

ReaderName = Literal[
    "jsonl",
    "ljspeech",
    "folder",
    "pipe_list",
    "librispeech",
    "libritts",
    "vctk",
    "common_voice",
    "speakers",
    "parquet",
    "lhotse",
    "recordings",
]

LANGUAGE_TAG = r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*"


def _language_tag(value: str) -> str:
    if not re.fullmatch(LANGUAGE_TAG, value):
        raise ValueError(f"{value!r} is no language tag; write one like 'en' or 'es-MX'")
    return value


Language = Annotated[str, AfterValidator(_language_tag)]


class ParquetOptions(Config):
    """``options`` of the reader ``parquet``: names of columns; an empty name means there is none.

    ``audio_column`` holds ``{bytes, path}`` or plain bytes, the others text or numbers.
    """

    audio_column: str = Field(default="audio", min_length=1)
    text_column: str = "text"
    speaker_column: str = ""


class CorpusConfig(Config):
    """``[corpora.<name>]``: where recordings lie, in which layout, and whose they are.

    ``language``, ``licence`` and ``speaker`` hold for utterances that do not say otherwise.
    """

    path: Path
    reader: ReaderName
    language: Language
    licence: str = "unknown"
    speaker: str = ""
    options: ParquetOptions | None = None

    @model_validator(mode="after")
    def _only_parquet_has_options(self) -> Self:
        if self.options is not None and self.reader != "parquet":
            raise ValueError(
                f"the reader {self.reader!r} has no options; leave them out, or is it 'parquet'?"
            )
        return self


class FilterConfig(Config):
    """``[filters]``: which utterances are kept; the order of the fields is that of the checks.

    Durations in seconds, rates in Hz. ``allowed_languages`` empty allows all; ``en`` allows
    ``en-GB`` too. ``min_dnsmos`` looks at the sample's ``dnsmos_mos_ovr``; samples that were never
    measured pass, unless ``measure_dnsmos`` measures them (about 0.1 s of a core a clip).
    """

    allowed_languages: tuple[Language, ...] = ()
    max_duration: float = Field(default=30.0, gt=0)
    min_duration: float = Field(default=0.2, ge=0)
    min_sample_rate: int = Field(default=8000, ge=0)
    min_dnsmos: float = Field(default=0.0, ge=0, le=5)
    measure_dnsmos: bool = False
    max_characters_per_second: float = Field(
        default=40.0, gt=0, description="faster than anybody speaks: the text is of another clip"
    )

    @model_validator(mode="after")
    def _some_duration_is_left(self) -> Self:
        if self.min_duration >= self.max_duration:
            raise ValueError(
                f"min_duration {self.min_duration} s leaves nothing below max_duration "
                f"{self.max_duration} s; raise max_duration"
            )
        return self
