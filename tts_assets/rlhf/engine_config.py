"""``[rlhf.<name>.engine]``: what completes the prompts of the rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tts_assets.config import Config
from tts_assets.program import ProgramConfig

WeightTransport = Literal["auto", "files", "nccl"]


class TransformersRollouts(Config):
    """The policy itself, in the trainer's processes: nothing to start, no weights to move."""

    kind: Literal["transformers"] = "transformers"

    def identity(self) -> dict[str, Any]:
        """What of it decides tokens; none of it means the fingerprint of no engine at all."""
        return {}


class VllmRollouts(Config):
    """vLLM in a process of its own, given the policy's weights before every rollout.

    ``kind`` and ``dtype`` decide the tokens. All else is how it runs, and changes no fingerprint;
    like the number of GPUs it may change the rounding of sums.
    """

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="unset: float32 on a CPU, bfloat16 on GPUs"
    )
    max_sequences: int = Field(64, gt=0, description="in flight at once; more wait in line")
    gpus: int = Field(1, ge=1, description="tensor parallel, where the stage runs on GPUs")
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of a GPU that vLLM may take")
    weights: WeightTransport = Field(
        "auto", description="nccl: from GPU to GPU; files: through the run folder"
    )
    python: str | None = Field(None, description="interpreter that has vLLM; unset: this one")
    start_seconds: float = Field(600.0, gt=0, description="until it must be healthy")
    rollout_seconds: float = Field(3600.0, gt=0, description="a slower answer is as good as none")
    restarts: int = Field(3, ge=0, description="in a row, when it dies")
    grace_seconds: float = Field(10.0, gt=0, description="between SIGTERM and SIGKILL")

    def identity(self) -> dict[str, Any]:
        """What of it decides tokens."""
        return {"engine": {"kind": self.kind, "dtype": self.dtype}}


EngineConfig = Annotated[TransformersRollouts | VllmRollouts, Field(discriminator="kind")]


class EngineProgram(ProgramConfig):
    """``tts_assets.rlhf.engine``: a vLLM engine of a serving model that takes new weights."""

    serving_model: Path
    engine: VllmRollouts = VllmRollouts()
