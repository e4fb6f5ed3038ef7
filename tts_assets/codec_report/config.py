"""What the program of the codec report is told. What the project file may say of it is
``[codec.report]``, in ``codec/config.py``."""

from __future__ import annotations

from pathlib import Path

from tts_assets.codec.config import CodecReportConfig
from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.core.split import ValidationSplit
from tts_assets.evaluation.config import LineageRow


class CodecVersion(Config):
    """A codec to measure, under the name that the report gives it; with ``decoder`` that one
    decodes in place of its own."""

    name: str
    codec: Path
    decoder: Path | None = None


class CodecReportProgram(ProgramConfig):
    """``tts_assets.codec_report.evaluate``: the first of ``versions`` is what the report is of."""

    report: CodecReportConfig
    versions: tuple[CodecVersion, ...]
    samples: dict[str, Path]
    validation: ValidationSplit = ValidationSplit()
    lineage: tuple[LineageRow, ...] = ()
