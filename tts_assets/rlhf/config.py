"""Configuration of GRPO (``[rlhf.<name>]``): prompts, rewards, algorithm, rollout engine.

The algorithm is Group Relative Policy Optimization, DeepSeekMath, arXiv 2402.03300. Defaults are
those of the reference trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tts_assets.audio_models.whisper import (
    check_transcribes,
    pinned_whisper,
    spoken_language,
    whisper_identity,
)
from tts_assets.core.artifacts import SpeakerEncoderCheckpoint
from tts_assets.core.config import Config
from tts_assets.core.program import ProgramConfig
from tts_assets.rlhf.alarms import AlarmConfig
from tts_assets.rlhf.reward_config import RewardConfig, SimilarityReward, WerReward
from tts_assets.serving.config import VllmConfig
from tts_assets.speakers.config import RESEMBLYZER, encoder_digest, encoder_path
from tts_assets.speechlm.config import SamplingConfig

Combine = Literal["sum", "harmonic"]

# Largest part of a GPU for vLLM if the trainer uses the same GPU: the policy also needs memory for
# gradients and optimizer states.
MAX_SHARED_MEMORY = 0.6

LONGEST_PROMPT = 400  # characters of a text

# Default upper bound of the CISPO importance weight: TRL recommends it after ScaleRL,
# arXiv 2510.13786.
CISPO_CLIP = 5.0

IMPORTANCE_CAP = 3.0  # TRL's: completions whose probability ratio is larger count nothing


class RolloutSampling(Config):
    """How rollouts are sampled. Keys and defaults are those of ``[serving.sampling]``.

    A recipe without this table explores more: temperature 1.1, top_k 75, top_p 0.9, 25 to 1024
    tokens. Each completion has a seed of its own, which follows from the ``seed`` of the recipe.
    """

    removed_keys: ClassVar = {"frequency_penalty": 0.0, "seed": SamplingConfig().seed}
    replaced_keys: ClassVar = {"seed": "set the seed of the recipe"}

    temperature: float = Field(0.8, ge=0)
    top_k: int = Field(50, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.1, gt=0)
    min_tokens: int = Field(10, ge=0)
    max_tokens: int = Field(1792, gt=0)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        self.complete()
        return self

    def complete(self) -> SamplingConfig:
        """The sampling of an engine. Raises ValueError for tokens out of order."""
        return SamplingConfig(**self.model_dump())


ROLLOUT_SAMPLING = RolloutSampling(
    temperature=1.1, top_k=75, top_p=0.9, min_tokens=25, max_tokens=1024
)


class TransformersRollouts(Config):
    """The policy generates its own rollouts in the trainer's processes."""

    kind: Literal["transformers"] = "transformers"

    def identity(self) -> dict[str, Any]:
        """Returns the settings that determine the tokens: none."""
        return {}


class VllmRollouts(Config):
    """vLLM generates the rollouts in a separate process.

    The trainer sends the policy's weights to vLLM before each rollout. Only ``kind`` and ``dtype``
    are part of the fingerprint. The other keys control how vLLM runs. Like the number of GPUs, they
    may change the rounding of sums.
    """

    removed_keys: ClassVar = {
        "rollout_seconds": 3600.0,
        "grace_seconds": 10.0,
        "python": None,
        "start_seconds": 600.0,
        "restarts": 3,
        "weights": "auto",
    }
    replaced_keys: ClassVar = {
        name: f"set {name} in [vllm]" for name in ("python", "start_seconds", "restarts")
    }

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="unset: float32 on a CPU, bfloat16 on GPUs"
    )
    max_sequences: int = Field(64, gt=0, description="completions that vLLM generates at once")
    gpus: int = Field(
        1, ge=0, description="tensor parallel size on GPUs; 0: share the trainer's first GPU"
    )
    gpu_memory: float = Field(0.9, gt=0, le=1, description="part of each GPU that vLLM may use")

    @property
    def shares_gpu(self) -> bool:
        """Whether vLLM shares the trainer's first GPU."""
        return self.gpus == 0

    @model_validator(mode="after")
    def _check_shared_gpu(self) -> Self:
        if self.shares_gpu and self.gpu_memory > MAX_SHARED_MEMORY:
            raise ValueError(
                f"gpus = 0 shares the trainer's GPU, and gpu_memory = {self.gpu_memory:g} of it "
                f"leaves too little: at most {MAX_SHARED_MEMORY:g}, for example gpu_memory = 0.3"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Returns the settings that determine the tokens."""
        return {"engine": {"kind": self.kind, "dtype": self.dtype}}


EngineConfig = Annotated[TransformersRollouts | VllmRollouts, Field(discriminator="kind")]


class EngineProgram(ProgramConfig):
    """Configuration of ``tts_assets.rlhf.engine``, the vLLM process beside the trainer."""

    serving_model: Path
    engine: VllmRollouts = VllmRollouts()
    vllm: VllmConfig = VllmConfig()


class PromptsConfig(Config):
    """Texts that the policy synthesizes: a text file, transcripts of corpora, or both.

    With ``voice_prompts`` each transcript gets a voice prompt: text and codes of another utterance.
    Lines of the file get none. Unusable texts are counted and left out: texts longer than 400
    characters, texts in other languages, texts without words or without a voice prompt, and
    prompts that leave too few positions for an answer.
    """

    renamed_keys: ClassVar = {"voice_of": "voice_speaker"}
    removed_keys: ClassVar = {"min_characters": 1, "max_characters": LONGEST_PROMPT}

    texts: Path | None = Field(None, description="text file, one text a line")
    language: str = Field("en", description="language of the lines of the text file")
    corpora: tuple[str, ...] = Field((), description="corpora whose transcripts are prompts")
    voice_prompts: bool = Field(False, description="give transcripts a voice prompt")
    voice_speaker: Literal["same", "any"] = Field(
        "same", description="speaker of a voice prompt: the one of the transcript, or any"
    )
    voice_seconds: tuple[float, float] = Field(
        (1.0, 10.0), description="shortest and longest voice prompt"
    )
    languages: tuple[str, ...] = Field((), description="languages to use; empty: all")

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if self.texts is None and not self.corpora:
            raise ValueError("there is no source of prompts: set texts, corpora, or both")
        if self.voice_prompts and not self.corpora:
            raise ValueError("voice_prompts needs corpora: voice prompts are clips of corpora")
        if not 0 < self.voice_seconds[0] < self.voice_seconds[1]:
            raise ValueError(
                f"voice_seconds {list(self.voice_seconds)} must be the shortest and the longest "
                "voice prompt, for example [1.0, 10.0]"
            )
        return self


class HeldOutConfig(Config):
    """Held-out prompts: the policy is evaluated on them and never trained on them.

    A hash of the text decides whether a prompt is held out. The policy completes each held-out
    prompt before the first step, every ``every`` steps, and at the end, always with the same seeds.
    """

    removed_keys: ClassVar = {"salt": "1"}

    fraction: float = Field(0.06, ge=0, lt=1, description="part of the texts that is held out")
    prompts: int = Field(32, ge=0, description="most held-out prompts; 0: none")
    samples: int = Field(1, ge=1, description="completions of each held-out prompt")
    every: int = Field(50, gt=0, description="steps between two evaluations")


class RlhfRecipe(Config):
    """GRPO from the serving model of the SFT recipe ``base``.

    One step samples ``generations`` completions for each of ``prompts_per_step`` prompts over all
    ranks, and makes ``iterations`` optimizer updates with them.

    ``combine`` makes one number of all rewards: the weighted sum, or the weighted harmonic mean,
    which is low if any reward is low. Rewards run in threads of the trainer, or in
    ``reward_workers`` processes for each rank. A worker that needs more than 600 s for a task is
    restarted; a thread cannot be stopped.

    With ``lora_rank`` low-rank adapters are trained and merged at the end. The reference of the KL
    divergence is then the policy without adapters, not a second model in memory.
    """

    added_keys: ClassVar = frozenset({"lora_rank", "strategy"})
    removed_keys: ClassVar = {
        "reward_seconds": 600.0,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "keep_audio": 8,
    }

    base: str = Field(description="SFT recipe whose serving model is trained")
    prompts: PromptsConfig
    rewards: tuple[RewardConfig, ...] = (WerReward(),)
    engine: EngineConfig = Field(
        TransformersRollouts(), description="generates the rollouts; unset: the policy itself"
    )
    combine: Combine = Field("sum", description="how rewards become one number")
    reward_workers: int = Field(0, ge=0, description="reward processes of each rank; 0: threads")
    reward_devices: tuple[str, ...] = Field(
        (), description='devices of the workers in turn, such as "cuda:1"; empty: CPU'
    )
    heldout: HeldOutConfig = HeldOutConfig()
    alarms: AlarmConfig = AlarmConfig()
    stop_on_collapse: bool = Field(
        False, description="stop at the first alarm and publish the checkpoint before it"
    )
    sampling: RolloutSampling = Field(ROLLOUT_SAMPLING, description="sampling of the rollouts")
    steps: int = Field(1000, gt=0, description="GRPO steps")
    prompts_per_step: int = Field(8, gt=0, description="prompts of a step, over all ranks")
    generations: int = Field(8, ge=2, description="completions of each prompt: the group of GRPO")
    iterations: int = Field(1, ge=1, description="optimizer updates of each step")
    learning_rate: float = Field(5e-6, gt=0)
    warmup_steps: int = Field(0, ge=0, description="updates until the full learning rate")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    beta: float = Field(0.04, ge=0, description="weight of the KL divergence to the base; 0: none")
    clip: float = Field(
        0.2, gt=0, description="the probability ratio is clipped to 1 - clip .. 1 + clip"
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="upper bound 1 + clip_high instead (DAPO: 0.28); cispo: the largest ratio",
    )
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = Field(
        "dr_grpo", description="normalization of the loss"
    )
    scale_rewards: Literal["none", "group", "batch"] = Field(
        "none", description="divide advantages by the standard deviation of the rewards"
    )
    lora_rank: int | None = Field(
        None, gt=0, description="rank of adapters (alpha: twice as much); unset: train all weights"
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: policy and optimizer on every rank; fsdp (FSDP2): weights that are "
        "trained, gradients and optimizer sharded",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute the activations of layers in the backward pass: less memory"
    )
    micro_batch: int = Field(32, gt=0, description="most completions of a forward pass")
    save_every: int = Field(50, gt=0, description="steps between two checkpoints for resuming")
    audio_every: int = Field(50, gt=0, description="steps between two sets of saved completions")
    seed: int = 777

    @model_validator(mode="after")
    def _check_rewards(self) -> Self:
        if not self.rewards:
            raise ValueError('rewards is empty, there is nothing to learn: add { kind = "wer" }')
        if not any(reward.weight for reward in self.rewards):
            raise ValueError(
                "every reward has weight 0, there is nothing to learn: give one a weight, for "
                'example { kind = "wer", weight = 1.0 }'
            )
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(
                f"a reward is named twice: {names}; use it once with a larger weight, or call a "
                "function of another name"
            )
        if self.reward_devices and not self.reward_workers:
            raise ValueError(
                "reward_devices are the devices of reward workers: set reward_workers as well, one "
                "for each device"
            )
        return self

    @model_validator(mode="after")
    def _check_algorithm(self) -> Self:
        if self.loss == "cispo" and self.clip_high is not None and self.clip_high <= 1:
            raise ValueError(
                f'with loss = "cispo", clip_high {self.clip_high:g} is the largest weight of a '
                "token and would shrink all of them. Take more than 1, or leave it out for "
                f"{CISPO_CLIP:g}"
            )
        if self.strategy == "fsdp" and self.lora_rank is not None:
            raise ValueError(
                "adapters have few gradients and moments, which are not sharded: leave lora_rank "
                'out, or write strategy = "ddp"'
            )
        if self.sampling.temperature == 0:
            raise ValueError(
                "sampling.temperature 0 makes all completions of a prompt equal: take 1.0"
            )
        return self

    def check_languages(self, where: str, spoken: Set[str], transcripts: Iterable[str]) -> None:
        """Raise ValueError where the languages of model, prompts and ASR models differ.

        ``where`` is the table of this recipe, ``spoken`` has the languages of the base model's
        speech (empty if unknown), ``transcripts`` the language tags of the prompt corpora.
        """
        prompts = self.prompts
        if prompts.texts and spoken and spoken_language(prompts.language) not in spoken:
            raise ValueError(
                f"{where}.prompts.language is {prompts.language!r}, but {self.base!r} is trained "
                f"on speech in {', '.join(sorted(spoken))}: set language, and texts in it"
            )
        used = {spoken_language(tag) for tag in prompts.languages}
        tags = {tag for tag in transcripts if not used or spoken_language(tag) in used}
        tags |= {prompts.language} if prompts.texts else set()
        for reward in self.rewards:
            if isinstance(reward, WerReward):
                for tag in sorted(tags):
                    instead = "list the languages to use in prompts.languages"
                    check_transcribes(reward.model, tag, f"{where}.rewards", instead)

    @property
    def upper_clip(self) -> float | None:
        """Upper clipping bound as TRL's ``epsilon_high``; None: equal to ``clip``."""
        return CISPO_CLIP if self.loss == "cispo" and self.clip_high is None else self.clip_high

    @property
    def speaker_encoder(self) -> str:
        """Speaker encoder of the similarity reward; empty without such a reward."""
        found = [r.encoder for r in self.rewards if isinstance(r, SimilarityReward)]
        return found[0] if found else ""

    def with_speaker_encoder(self, encoder: str) -> RlhfRecipe:
        """Returns the recipe with ``encoder``, a path or digest, in its similarity reward."""
        rewards = tuple(
            r.model_copy(update={"encoder": encoder}) if isinstance(r, SimilarityReward) else r
            for r in self.rewards
        )
        return self.model_copy(update={"rewards": rewards})

    def identified(self) -> RlhfRecipe:
        """Returns the recipe for fingerprints: Whisper models have their identities.

        The path of the prompt texts is left out: the fingerprint has the digest of all prompts.
        """
        prompts = self.prompts.model_copy(update={"texts": None})
        return self._with_whisper(whisper_identity).model_copy(update={"prompts": prompts})

    def with_commits(self) -> RlhfRecipe:
        """Returns the recipe for the program: Whisper models on the hub have their commit."""
        return self._with_whisper(pinned_whisper)

    def _with_whisper(self, name: Callable[[str], str]) -> RlhfRecipe:
        rewards = tuple(
            r.model_copy(update={"model": name(r.model)}) if isinstance(r, WerReward) else r
            for r in self.rewards
        )
        return self.model_copy(update={"rewards": rewards})

    def identity(self) -> dict[str, Any]:
        """Returns the settings that determine the result, as JSON values.

        Settings of execution are left out: how the engine runs, and where rewards are computed.
        The cap of importance ratios is in that of every recipe with vLLM: whether it corrects
        follows from the machine.
        ``clip_high`` is included only if it has an effect: recipes from before this key keep
        their fingerprints.
        """
        execution = {"engine", "reward_workers", "reward_devices"}
        execution |= {"strategy", "gradient_checkpointing"}
        values = self.canonical(exclude=execution | {"clip_high"})
        values.pop("reward_seconds")  # a removed key; it was a setting of execution
        upper = {} if self.upper_clip is None else {"clip_high": self.upper_clip}
        vllm = isinstance(self.engine, VllmRollouts)
        corrected = {"importance_cap": IMPORTANCE_CAP} if vllm else {}
        return {**values, **upper, **corrected, **self.engine.identity()}


def located_encoder(
    recipe: RlhfRecipe, encoder: SpeakerEncoderCheckpoint | None, root: Path
) -> tuple[RlhfRecipe, dict[str, Any]]:
    """Returns the recipe for the program, with the path of its speaker encoder and the commits of
    its models, and its identity without paths."""
    identified, recipe = recipe.identified(), recipe.with_commits()
    if recipe.speaker_encoder in ("", RESEMBLYZER):
        return recipe, identified.identity()
    path = encoder_path(recipe.speaker_encoder, encoder, root)
    identity = identified.with_speaker_encoder(encoder_digest(path)).identity()
    return recipe.with_speaker_encoder(str(path)), identity


class RlhfProgram(ProgramConfig):
    """Configuration of ``tts_assets.rlhf.train``.

    ``prompts``: a ``prompts.jsonl``. ``vllm``: the environment of the engine, if there is one.
    """

    name: str
    recipe: RlhfRecipe
    serving_model: Path
    prompts: Path
    vllm: VllmConfig = VllmConfig()

    def engine_program(self) -> EngineProgram | None:
        """Returns the vLLM program of the run; None if the policy generates its own rollouts."""
        engine = self.recipe.engine
        if not isinstance(engine, VllmRollouts):
            return None
        folder = self.run_dir / "engine"
        return EngineProgram(
            run_dir=folder, serving_model=self.serving_model, engine=engine, vllm=self.vllm
        )
