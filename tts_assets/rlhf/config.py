"""Configuration of GRPO: prompts, rewards, the algorithm. Defaults are the reference trainer's.

``[rlhf.<name>.engine]``: what completes the prompts of the rollouts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tts_assets.core.config import Config
from tts_assets.core.hub import identity
from tts_assets.core.program import ProgramConfig
from tts_assets.rlhf.alarms import AlarmConfig
from tts_assets.rlhf.reward_config import RewardConfig, SimilarityReward, WerReward
from tts_assets.speechlm.config import SamplingConfig

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


Combine = Literal["sum", "harmonic"]

# A rollout explores: hotter than synthesis, and without the filters that hide what is likely wrong.
ROLLOUT_SAMPLING = SamplingConfig(
    temperature=1.1, top_k=75, top_p=0.9, repetition_penalty=1.1, min_tokens=25, max_tokens=1024
)

# The largest weight of a token that TRL recommends, from ScaleRL (arXiv 2510.13786).
CISPO_CLIP = 5.0


class PromptsConfig(Config):
    """Whose texts the policy says: a file (a text a line), transcripts of corpora, or both.

    With ``voice_prompts`` a transcript is said after another utterance, as text and codes; the
    lines of a file are said without. Texts outside ``min_characters`` .. ``max_characters``, of
    other languages, without words or without a voice prompt, and those that leave the model no
    room to answer, are left out, and counted. ``language`` is that of the file's lines.
    """

    texts: Path | None = None
    language: str = "en"
    corpora: tuple[str, ...] = ()
    voice_prompts: bool = False
    voice_of: Literal["same", "any"] = Field(
        "same", description="speaker of a voice prompt: the text's own, or whoever comes next"
    )
    voice_seconds: tuple[float, float] = Field(
        (1.0, 10.0), description="shortest and longest clip that is a voice prompt"
    )
    languages: tuple[str, ...] = ()
    min_characters: int = Field(1, ge=1)
    max_characters: int = Field(400, ge=1)

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if self.texts is None and not self.corpora:
            raise ValueError("name a file in texts, or corpora, or both")
        if self.voice_prompts and not self.corpora:
            raise ValueError("voice_prompts needs corpora to take voices from")
        if not 0 < self.voice_seconds[0] < self.voice_seconds[1]:
            raise ValueError(
                f"voice_seconds {list(self.voice_seconds)} must be the shortest and the longest "
                "voice prompt, for example [1.0, 10.0]"
            )
        return self


class HeldOutConfig(Config):
    """Prompts that are never trained on: their mean reward is what the run is judged by.

    A text is held out if its hash is below ``fraction``, at most ``prompts`` of them; 0 holds out
    none. They are said ``samples`` times with the same seeds before the first step, every
    ``every`` steps, and at the end.
    """

    fraction: float = Field(0.06, ge=0, lt=1)
    salt: str = "1"
    prompts: int = Field(32, ge=0)
    samples: int = Field(1, ge=1)
    every: int = Field(50, gt=0, description="steps")


class RlhfRecipe(Config):
    """``[rlhf.<name>]``: GRPO from the serving model of the SFT recipe ``base``.

    One step samples ``generations`` completions of each of ``prompts_per_step`` prompts, over all
    processes, and makes ``iterations`` updates with them. At most ``micro_batch`` completions go
    through the model at a time.

    Rewards become one number by ``combine``: their weighted sum, or their weighted harmonic mean,
    which is low where any of them is; one of weight 0 is only watched. They are judged in threads
    of the trainer, or in ``reward_workers`` processes a rank, in turn on ``reward_devices``
    ("cuda:1"; none: the CPU). Only a process can be ended that takes longer than
    ``reward_seconds`` for some completions.
    """

    base: str
    prompts: PromptsConfig
    rewards: tuple[RewardConfig, ...] = (WerReward(),)
    engine: EngineConfig = TransformersRollouts()
    combine: Combine = "sum"
    reward_workers: int = Field(0, ge=0)
    reward_devices: tuple[str, ...] = ()
    reward_seconds: float = Field(600.0, gt=0)
    heldout: HeldOutConfig = HeldOutConfig()
    alarms: AlarmConfig = AlarmConfig()
    stop_on_collapse: bool = Field(False, description="end with the last checkpoint before it")
    sampling: SamplingConfig = ROLLOUT_SAMPLING
    steps: int = Field(1000, gt=0)
    prompts_per_step: int = Field(8, gt=0)
    generations: int = Field(8, ge=2)
    iterations: int = Field(1, ge=1)
    learning_rate: float = Field(5e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    beta: float = Field(0.04, ge=0, description="weight of the KL to the base; 0 skips it")
    clip: float = Field(0.2, gt=0, description="of the probability ratio, to 1 - clip .. 1 + clip")
    clip_high: float | None = Field(
        None, gt=0, description="above: to 1 + clip_high (DAPO: 0.28); cispo: the largest ratio"
    )
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = "dr_grpo"
    scale_rewards: Literal["none", "group", "batch"] = "none"
    micro_batch: int = Field(32, gt=0)
    save_every: int = Field(50, gt=0, description="steps between two checkpoints for resuming")
    audio_every: int = Field(50, gt=0, description="steps between two sets of saved completions")
    keep_audio: int = Field(8, ge=0, description="completions saved each time")
    seed: int = 777

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.rewards:
            raise ValueError('rewards is empty: without one there is nothing to learn, try "wer"')
        if not any(reward.weight for reward in self.rewards):
            raise ValueError(
                "every reward has weight 0: without one that counts there is nothing to learn, "
                'give one a weight, { kind = "wer", weight = 1.0 }'
            )
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(
                f"a reward is named twice: {names}; give one, with a larger weight, or call a "
                "function of another name"
            )
        if self.reward_devices and not self.reward_workers:
            raise ValueError(
                "reward_devices are those of reward_workers: set reward_workers, too, one a device"
            )
        if self.loss == "cispo" and self.clip_high is not None and self.clip_high <= 1:
            raise ValueError(
                f"clip_high {self.clip_high:g} is the largest weight of a token with loss = "
                f'"cispo": all would shrink. Take more than 1, or leave it out for {CISPO_CLIP:g}'
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature 0 makes all completions of a prompt equal")
        return self

    @property
    def upper_clip(self) -> float | None:
        """The upper bound in TRL's terms; None: as far from 1 as the lower."""
        return CISPO_CLIP if self.loss == "cispo" and self.clip_high is None else self.clip_high

    @property
    def voice_encoder(self) -> str:
        """The speaker encoder that the similarity reward names; empty without one."""
        found = [r.encoder for r in self.rewards if isinstance(r, SimilarityReward)]
        return found[0] if found else ""

    def hearing_with(self, encoder: str) -> RlhfRecipe:
        """The recipe with this encoder in its similarity reward."""
        rewards = tuple(
            r.model_copy(update={"encoder": encoder}) if isinstance(r, SimilarityReward) else r
            for r in self.rewards
        )
        return self.model_copy(update={"rewards": rewards})

    def identified(self) -> RlhfRecipe:
        """The recipe with a Whisper that is a folder named by its files."""
        rewards = tuple(
            r.model_copy(update={"model": identity(r.model)}) if isinstance(r, WerReward) else r
            for r in self.rewards
        )
        return self.model_copy(update={"rewards": rewards})

    def identity(self) -> dict[str, Any]:
        """What decides the result: all but how the engine runs and where rewards are judged."""
        how = {"engine", "reward_workers", "reward_devices", "reward_seconds", "clip_high"}
        # without a bound of its own a recipe is what it was before there was one
        upper = {} if self.upper_clip is None else {"clip_high": self.upper_clip}
        return {**self.model_dump(mode="json", exclude=how), **upper, **self.engine.identity()}


class RlhfProgram(ProgramConfig):
    """``tts_assets.rlhf.train``: one GRPO run. ``prompts`` is a ``prompts.jsonl``."""

    name: str
    recipe: RlhfRecipe
    serving_model: Path
    prompts: Path

    def engine_program(self) -> EngineProgram | None:
        """The engine beside the trainer; None where the policy speaks itself."""
        engine = self.recipe.engine
        if not isinstance(engine, VllmRollouts):
            return None
        folder = self.run_dir / "engine"
        return EngineProgram(run_dir=folder, serving_model=self.serving_model, engine=engine)
