"""``[rlhf.<name>.engine]``: what completes the prompts of the rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tts_assets.config import Config
from tts_assets.program import ProgramConfig

WeightTransport = Literal["auto", "files", "nccl"]
MOST_SHARED = 0.6  # of a GPU on which a policy has its gradients and moments, too


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
    gpus: int = Field(
        1,
        ge=0,
        description="tensor parallel, where the stage runs on GPUs; 0: the trainer's first, shared",
    )
    gpu_memory: float = Field(0.9, gt=0, le=1, description="share of a GPU that vLLM may take")
    weights: WeightTransport = Field(
        "auto", description="nccl: from GPU to GPU; files: through the run folder"
    )
    python: str | None = Field(None, description="interpreter that has vLLM; unset: this one")
    start_seconds: float = Field(600.0, gt=0, description="until it must be healthy")
    rollout_seconds: float = Field(3600.0, gt=0, description="a slower answer is as good as none")
    restarts: int = Field(3, ge=0, description="in a row, when it dies")
    grace_seconds: float = Field(10.0, gt=0, description="between SIGTERM and SIGKILL")

    @property
    def shares_gpu(self) -> bool:
        """Whether it has no GPU of its own where the trainer is on GPUs."""
        return self.gpus == 0

    @model_validator(mode="after")
    def _fits_beside(self) -> Self:
        if self.shares_gpu and self.weights == "nccl":
            raise ValueError(
                "gpus = 0 shares the trainer's GPU, and NCCL has no two ranks on one: leave out "
                'weights = "nccl"'
            )
        if self.shares_gpu and self.gpu_memory > MOST_SHARED:
            raise ValueError(
                f"gpus = 0 shares the trainer's GPU, and gpu_memory = {self.gpu_memory:g} of it "
                f"leaves too little: at most {MOST_SHARED:g}, for example gpu_memory = 0.3"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What of it decides tokens."""
        return {"engine": {"kind": self.kind, "dtype": self.dtype}}


EngineConfig = Annotated[TransformersRollouts | VllmRollouts, Field(discriminator="kind")]


class EngineProgram(ProgramConfig):
    """``tts_assets.rlhf.engine``: a vLLM engine of a serving model that takes new weights."""

    serving_model: Path
    engine: VllmRollouts = VllmRollouts()
