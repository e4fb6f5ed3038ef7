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
]


def _language_tag(value: str) -> str:
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", value):
        raise ValueError(f"{value!r} is no language tag; write one like 'en' or 'es-MX'")
    return value


Language = Annotated[str, AfterValidator(_language_tag)]


class CorpusConfig(Config):
    """``[corpora.<name>]``: where recordings lie, in which layout, and whose they are.

    ``language``, ``licence`` and ``speaker`` hold for utterances that do not say otherwise.
    """

    path: Path
    reader: ReaderName
    language: Language
    licence: str = "unknown"
    speaker: str = ""


class DiscoveryConfig(Config):
    """``[discovery]``: the folder whose subfolders are corpora (see ``discovery.py``).

    ``language``, ``licence`` and ``speaker`` hold for those whose ``corpus.toml`` does not say
    otherwise.
    """

    root: Path | None = None
    language: Language | None = None
    licence: str = "unknown"
    speaker: str = ""

    @model_validator(mode="after")
    def _defaults_are_of_something(self) -> Self:
        if self.root is None and self.model_fields_set:
            raise ValueError(
                f"{sorted(self.model_fields_set)} hold for discovered corpora, but no root says "
                f"where those lie; write root = 'corpora', or leave [discovery] out"
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
