"""Configuration of GRPO: prompts, rewards, the algorithm. Defaults are the reference trainer's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tts_assets.config import Config
from tts_assets.program import ProgramConfig
from tts_assets.speechlm.config import SamplingConfig

# A rollout explores: hotter than synthesis, and without the filters that hide what is likely wrong.
ROLLOUT_SAMPLING = SamplingConfig(
    temperature=1.1, top_k=75, top_p=0.9, repetition_penalty=1.1, min_tokens=25, max_tokens=1024
)


class WerReward(Config):
    """``exp(-scale x WER)`` of a Whisper transcript; CER for zh, ja and ko.

    ``model`` names a faster-whisper model; empty is the packaged tiny.en. Whisper reads windows
    of ``window_seconds`` instead of 30 s where the audio is shorter: on 4.5 s digit strings
    tiny.en still has WER 0, at 0.15 s a clip instead of 0.8 (one core).
    """

    kind: Literal["wer"] = "wer"
    weight: float = Field(1.0, gt=0)
    scale: float = Field(2.5, gt=0)
    model: str = ""
    language: str = "en"
    window_seconds: float = Field(10.0, ge=4.0, le=30.0)
    batch_size: int = Field(8, gt=0)


class RateReward(Config):
    """1 while the audio has between ``slowest`` and ``fastest`` characters of text a second.

    Outside it falls as the ratio to the nearer bound: twice too long scores one half. Keeps the
    policy from stretching or dropping what Whisper forgives.
    """

    kind: Literal["rate"] = "rate"
    weight: float = Field(1.0, gt=0)
    slowest: float = Field(4.0, gt=0)
    fastest: float = Field(25.0, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.slowest >= self.fastest:
            raise ValueError(f"slowest {self.slowest} is not below fastest {self.fastest}")
        return self


class DnsmosReward(Config):
    """``(DNSMOS overall - 1) / 4``."""

    kind: Literal["dnsmos"] = "dnsmos"
    weight: float = Field(1.0, gt=0)


class SimilarityReward(Config):
    """``(cosine + 1) / 2`` of the speaker embeddings of the completion and of the voice prompt.

    Without a voice prompt the serving model's first voice stands for the speaker.
    """

    kind: Literal["similarity"] = "similarity"
    weight: float = Field(1.0, gt=0)
    speaker_encoder: str = Field(
        "resemblyzer", description='or a folder, such as "storage/speaker_encoder/all/current"'
    )


RewardConfig = Annotated[
    WerReward | RateReward | DnsmosReward | SimilarityReward, Field(discriminator="kind")
]


class PromptsConfig(Config):
    """Whose texts the policy says: a file (a text a line), transcripts of corpora, or both.

    With ``voice_prompts`` a transcript is said after another utterance of the same speaker, as
    text and codes; the lines of a file are said without. Texts outside ``min_characters`` ..
    ``max_characters`` or of other languages are left out, and counted.
    """

    texts: Path | None = None
    corpora: tuple[str, ...] = ()
    voice_prompts: bool = False
    languages: tuple[str, ...] = ()
    min_characters: int = Field(1, ge=1)
    max_characters: int = Field(400, ge=1)

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if self.texts is None and not self.corpora:
            raise ValueError("name a file in texts, or corpora, or both")
        if self.voice_prompts and not self.corpora:
            raise ValueError("voice_prompts needs corpora to take voices from")
        return self


class RlhfRecipe(Config):
    """``[rlhf.<name>]``: GRPO from the serving model of the SFT recipe ``base``.

    One step samples ``generations`` completions of each of ``prompts_per_step`` prompts, over all
    processes, and makes ``iterations`` updates with them. At most ``micro_batch`` completions go
    through the model at a time.
    """

    base: str
    prompts: PromptsConfig
    rewards: tuple[RewardConfig, ...] = (WerReward(),)
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
    clip: float = Field(0.2, gt=0, description="of the probability ratio")
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
        kinds = [reward.kind for reward in self.rewards]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"a reward is named twice: {kinds}; give one, with a larger weight")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature 0 makes all completions of a prompt equal")
        return self


class RlhfProgram(ProgramConfig):
    """``tts_assets.rlhf.train``: one GRPO run. ``prompts`` is a ``prompts.jsonl``."""

    name: str
    recipe: RlhfRecipe
    serving_model: Path
    prompts: Path
