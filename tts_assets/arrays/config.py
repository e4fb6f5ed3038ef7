"""What ``dagster_project.toml`` may say of merged arrays, and what the export program is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.config import VoiceConsent

DIGEST_DIGITS = 12  # as many of a content digest as name a codec


class ImportedArrays(Config):
    """``[arrays.imported.<corpus>]``: a folder that the reference trainer's merger wrote.

    ``codec`` names what made the codes: the ``checkpoint`` of ``[codec]`` as it stands there, or
    the codec's content digest (12 digits at least). Codes of another codec look the same, so that
    nothing but this name tells. ``licence`` holds for samples that do not say their own.
    """

    path: Path
    codec: str = Field(min_length=1)
    licence: str = "unknown"
    consent: VoiceConsent | None = None


class ArraysConfig(Config):
    """``[arrays]``: what is made beside merged arrays, and which arrays come from elsewhere.

    ``export`` adds the asset ``inworld_arrays``: the same data in the layout of the reference
    trainer. ``pretraining`` writes ``token_arrays`` with the streams that pretraining reads.
    """

    export: Literal["inworld"] | None = None
    pretraining: bool = False
    imported: dict[str, ImportedArrays] = Field(default_factory=dict)


class ExportProgram(ProgramConfig):
    """``tts_assets.arrays.inworld``: the folder of a ``code_arrays`` artifact."""

    arrays: Path
