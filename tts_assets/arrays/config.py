"""Configuration of merged arrays: ``[arrays]`` and the export program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.config import VoiceConsent

DIGEST_DIGITS = 12  # the digits of a content digest that identify a codec


class ImportedArrays(Config):
    """``[arrays.imported.<corpus>]``: a folder that the merger of the reference trainer wrote.

    ``codec`` identifies the codec that made the codes: the ``checkpoint`` of ``[codec]``, or the
    content digest of the codec (at least 12 digits). It is required because codes of different
    codecs cannot be distinguished. ``licence`` applies to samples without a licence.
    """

    path: Path
    codec: str = Field(min_length=1)
    licence: str = "unknown"
    consent: VoiceConsent | None = None


class ArraysConfig(Config):
    """``[arrays]``: an additional output, and imported arrays.

    ``export`` adds the asset ``inworld_arrays``: the same data in the layout of the reference
    trainer.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"pretraining": False}
    replaced_keys: ClassVar[Mapping[str, str]] = {
        "pretraining": "token_arrays have the streams of pretraining if a recipe of [sft] has the "
        "table pretraining; delete the key"
    }

    export: Literal["inworld"] | None = None
    imported: dict[str, ImportedArrays] = Field(default_factory=dict)


class ExportProgram(ProgramConfig):
    """``tts_assets.arrays.inworld``: exports the folder of a ``code_arrays`` artifact."""

    arrays: Path
