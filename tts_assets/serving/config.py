"""Configuration of the conversion to serving models, of the server, and files of their folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tts_assets.core.artifacts import ServingModel
from tts_assets.core.config import Config
from tts_assets.core.metadata import Markdown, Metadata
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.config import TextConfig, VoiceConsent, people
from tts_assets.speechlm.config import SamplingConfig

SERVING_FILE = "serving.json"
CHECK_TOKENS = 32  # greedy tokens after each text that are compared with the checkpoint
GPU_MEMORY = 0.8  # fraction of a GPU for vLLM: the codec needs the rest
Quantization = Literal["f16", "q8_0"]  # of the weights in llama.cpp


class ServingConfig(Config):
    """``[serving]``: settings of every serving model.

    The conversion picks ``voices`` prompt clips from the validation samples. Each has a length
    within ``voice_seconds`` (shortest, longest). Too short a prompt does not define the voice. Too
    long a prompt leaves no context for the text.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"watermark"})
    removed_keys: ClassVar[Mapping[str, Any]] = {"check_tokens": CHECK_TOKENS}

    sampling: SamplingConfig = SamplingConfig()
    voices: int = Field(2, ge=0)
    voice_seconds: tuple[float, float] = (2.0, 8.0)
    licence: str = Field("", description="license of the weights; empty: that of the corpora")
    check_texts: tuple[str, ...] = (
        "one two three four",
        "thank you for calling",
    )
    watermark: bool = Field(True, description="an inaudible mark in everything that is synthesized")
    # Costs 50 s on one busy core, mostly the start of vLLM. vLLM has its own model code (tied
    # embeddings, rotary positions, heads). An error there produces noise and no exception.
    check_vllm: bool = Field(True, description="compare vLLM too; false if it is not installed")

    def verification(
        self, run_dir: Path, checkpoint: Path, serving_model: Path, codebook_size: int
    ) -> VerifyProgram:
        """The program that compares ``serving_model`` with ``checkpoint``."""
        return VerifyProgram(
            run_dir=run_dir,
            checkpoint=checkpoint,
            serving_model=serving_model,
            codebook_size=codebook_size,
            texts=self.check_texts,
            tokens=CHECK_TOKENS,
            vllm=self.check_vllm,
        )


class VerifyProgram(ProgramConfig):
    """Configuration of ``tts_assets.serving.verify``.

    The program compares a serving model with its checkpoint: ``tokens`` greedy tokens after each
    of ``texts``, in transformers and, with ``vllm``, in vLLM.
    """

    checkpoint: Path
    serving_model: Path
    codebook_size: int
    texts: tuple[str, ...]
    tokens: int
    vllm: bool


class ServerConfig(Config):
    """Options of ``python -m tts_assets.serving.server``: each key is a command-line option.

    The environment variable ``TTS_API_KEY`` sets the API key. Without it the server needs no key.
    """

    host: str = Field("127.0.0.1", description="0.0.0.0: all interfaces, with TTS_API_KEY set")
    port: int = Field(8000, ge=0, le=65535)
    concurrency: int = Field(64, gt=0, description="concurrent requests; more get status 429")
    max_characters: int = Field(
        4096, gt=0, description="characters of a text and of its instructions"
    )
    max_upload_mb: float = Field(10.0, gt=0, description="size of a request body")
    voices: Path | None = Field(None, description="folder for uploaded voices; none: memory only")
    adapters: str = Field(
        "", description="serving models with an adapter of this one, separated by commas: voices"
    )
    lora_scale: float = Field(1.0, gt=0, le=2, description="factor of what the adapters add")
    max_voices: int = Field(1000, gt=0, description="most uploaded voices")
    max_connections: int = Field(
        512, gt=0, description="open connections; the oldest idle one ends"
    )
    allowed_hosts: str = Field(
        "", description="names in the Host header, separated by commas, for a server without a key"
    )
    gpu_memory: float = Field(
        GPU_MEMORY, gt=0, le=1, description="fraction of a GPU for vLLM; unused on a CPU"
    )
    max_model_len: int | None = Field(
        None, gt=0, description="tokens of voice prompt, text and speech; none: the model's limit"
    )

    @property
    def adapter_folders(self) -> list[Path]:
        """The serving models of ``adapters``."""
        return [Path(one) for one in self.adapters.split(",") if one]


class VllmConfig(Config):
    """``[vllm]``: vLLM as a separate process: the server, and engines of rollouts."""

    python: Path | None = Field(None, description="interpreter with vLLM; none: this one")
    start_seconds: float = Field(600.0, gt=0, description="a cold start takes 30-150 s on a CPU")
    restarts: int = Field(3, ge=0, description="restarts in a row after a crash")


class Voice(Config):
    """A voice prompt: its transcript, and its codec codes at the codec's token rate."""

    text: str
    codes: tuple[int, ...]
    speaker: str = ""
    language: str = ""
    source: str = Field("", description="id of the source utterance")


class StoredVoice(Voice):
    """The file of an uploaded voice. Its codes are valid for one codec only."""

    codec: str = Field(description="content digest of the codec")


class ServingCard(Config):
    """``serving.json`` of a serving model. Paths are relative to its folder.

    Without ``decoder_path`` the codec's own decoder makes the waveform. ``sample_rate`` is that of
    the waveform in Hz, ``token_rate`` the number of codes per second.
    """

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
    languages: tuple[str, ...] = Field(
        (), description="of the training speech, the most frequent first; empty: unknown"
    )
    consents: dict[str, VoiceConsent] = Field(default_factory=dict, description="by corpus")
    watermark: bool = True

    @property
    def language(self) -> str:
        """The language of texts without one: that of most training speech, or else English."""
        return self.languages[0] if self.languages else "en"

    @property
    def consenting_people(self) -> str:
        """The people whose voices the model was trained on. Empty for synthetic voices."""
        return people(self.consents)


def describe(model: ServingModel) -> Metadata:
    """Metadata: the model card, and the command that synthesizes speech."""
    command = f'python -m tts_assets.serving.synthesize --model {model.path} --text "…" --out a.wav'
    card = (model.path / "README.md").read_text().split("---\n", 2)[2]
    return {"model_card": Markdown(card), "command": command}
