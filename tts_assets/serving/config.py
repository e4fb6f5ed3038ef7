"""Configuration of the conversion of a checkpoint into a serving model."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tts_assets.config import Config
from tts_assets.corpora.config import TextConfig
from tts_assets.speechlm.config import SamplingConfig

SERVING_FILE = "serving.json"


class ServingConfig(Config):
    """``[serving]``: what every serving model is given beside its weights.

    ``voices`` prompt clips are taken from the validation samples of the arrays, of
    ``voice_seconds`` (shortest, longest): a prompt must show the voice, yet leave the context to
    the text.
    """

    sampling: SamplingConfig = SamplingConfig()
    voices: int = Field(2, ge=0)
    voice_seconds: tuple[float, float] = (2.0, 8.0)
    licence: str = Field("", description="licence of the weights; empty: that of the corpora")
    check_texts: tuple[str, ...] = (
        "one two three four",
        "thank you for calling",
    )
    check_tokens: int = Field(32, gt=0, description="greedy tokens compared with the trainer's")
    check_vllm: bool = Field(False, description="compare with the vLLM engine, too (cold start)")


class Voice(Config):
    """A registered voice prompt: its transcript and its codes, at the codec's token rate."""

    text: str
    codes: tuple[int, ...]
    speaker: str = ""
    language: str = ""
    source: str = Field("", description="id of the utterance")


class ServingCard(Config):
    """``serving.json``. ``codec_path`` is relative to the folder that holds it."""

    recipe: str
    stage: str
    vocabulary: str
    codec: str
    codec_path: Path
    sample_rate: int
    token_rate: float
    codebook_size: int
    sampling: SamplingConfig
    text: TextConfig = Field(TextConfig(), description="how the training texts were normalized")
    voices: dict[str, Voice]
