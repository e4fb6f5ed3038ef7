"""Configuration of serving models: conversion, server, and what lies in their folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.config import TextConfig, VoiceConsent, people
from tts_assets.speechlm.config import SamplingConfig

SERVING_FILE = "serving.json"
GPU_MEMORY = 0.8  # share of a GPU for vLLM: the codec lies there, too


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
    # 50 s more on one busy core, most of it vLLM's start. It reads the folder with code of its own
    # (tied embeddings, rotary positions, heads), and what it misreads gives noise, not an error.
    check_vllm: bool = Field(True, description="in vLLM, too; false where vLLM is not installed")


class VerifyProgram(ProgramConfig):
    """``tts_assets.serving.verify``: a serving model against its checkpoint, ``tokens`` greedy
    tokens after each of ``texts``; with ``vllm`` in that engine, too."""

    checkpoint: Path
    serving_model: Path
    codebook_size: int
    texts: tuple[str, ...]
    tokens: int
    vllm: bool


class ServerConfig(Config):
    """``python -m tts_assets.serving.server``; each key is an option of the command.

    Its API key is the environment variable ``TTS_API_KEY``; none: no key is asked for.
    """

    host: str = Field("127.0.0.1", description="0.0.0.0: every interface; set TTS_API_KEY then")
    port: int = Field(8000, ge=0, le=65535)
    concurrency: int = Field(64, gt=0, description="requests at once; more get status 429")
    max_characters: int = Field(4096, gt=0, description="of a text, and of its instructions")
    max_upload_mb: float = Field(10.0, gt=0, description="of a request")
    voices: Path | None = Field(None, description="folder of uploaded voices; none: till it ends")
    max_voices: int = Field(1000, gt=0, description="uploaded ones that are kept")
    gpu_memory: float = Field(
        GPU_MEMORY, gt=0, le=1, description="share of a GPU that vLLM may take; unused on a CPU"
    )
    max_model_len: int | None = Field(
        None, gt=0, description="tokens of voice prompt, text and speech; none: all the model has"
    )


class VllmConfig(Config):
    """``[vllm]``: where vLLM runs when Dagster starts it as a process of its own."""

    python: Path | None = Field(None, description="of the environment with vLLM; none: this one")
    start_seconds: float = Field(600.0, gt=0, description="it starts cold in 30-150 s on a CPU")
    restarts: int = Field(3, ge=0, description="in a row, after it died")


class Voice(Config):
    """A registered voice prompt: its transcript and its codes, at the codec's token rate."""

    text: str
    codes: tuple[int, ...]
    speaker: str = ""
    language: str = ""
    source: str = Field("", description="id of the utterance")


class KeptVoice(Voice):
    """An uploaded voice as its file has it: its codes mean something in one codec only."""

    codec: str = Field(description="content digest")


class ServingCard(Config):
    """``serving.json``. Paths are relative to the folder that holds it; without ``decoder_path``
    the codec's own decoder speaks."""

    recipe: str
    stage: str
    vocabulary: str
    codec: str
    codec_path: Path
    decoder_path: Path | None = None
    sample_rate: int
    token_rate: float
    codebook_size: int
    sampling: SamplingConfig
    text: TextConfig = Field(TextConfig(), description="how the training texts were normalized")
    voices: dict[str, Voice]
    consents: dict[str, VoiceConsent] = Field(default_factory=dict, description="by corpus")

    @property
    def whose(self) -> str:
        """The people whose voices it was trained on; empty where there are none."""
        return people(self.consents)
