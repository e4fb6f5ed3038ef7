"""Configuration of evaluation: the suite, the ears, what is compared with what."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tts_assets.config import Config
from tts_assets.program import ProgramConfig
from tts_assets.speechlm.config import SamplingConfig


class EvaluationConfig(Config):
    """``[evaluation]``: every serving model says the whole suite, and is scored."""

    suite: Path = Field(description="JSONL: id, category, text")
    language: str = "en"
    seeds: tuple[int, ...] = Field((42,), min_length=1, description="syntheses of each text")
    voice: str = Field("", description="a voice of the serving model; empty: no voice prompt")
    sampling: SamplingConfig | None = Field(None, description="none: the serving model's own")
    whisper: str = Field("", description="a faster-whisper model; empty: the packaged tiny.en")
    beam_size: int = Field(5, ge=1)
    window_seconds: float = Field(
        15.0, ge=4.0, le=30.0, description="of Whisper; at 15 a third of the time of 30"
    )
    speaker_encoder: str = Field(
        "resemblyzer", description='or a folder, such as "storage/speaker_encoder/all/current"'
    )
    references: int = Field(10, ge=1, description="validation clips that stand for the speaker")
    batch_size: int = Field(8, ge=1, description="texts spoken at a time; changes rounding")


class LineageRow(Config):
    """One artifact that a result was made from, in words."""

    asset: str
    partition: str
    content: str
    code_version: str
    detail: str


class EvaluationProgram(ProgramConfig):
    """``tts_assets.evaluation.evaluate``: one serving model says one suite.

    ``suite`` is a ``suite.jsonl``; ``references`` are clips of the speaker that is imitated.
    """

    name: str
    evaluation: EvaluationConfig
    serving_model: Path
    suite: Path
    references: tuple[Path, ...]
    lineage: tuple[LineageRow, ...] = ()
