"""Configuration of the reward functions: ``[[rlhf.<name>.rewards]]``, one ``kind`` each."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tts_assets.audio_models.whisper import knows_english_only
from tts_assets.core.config import Config
from tts_assets.speakers.config import RESEMBLYZER


class BaseReward(Config):
    """Common settings of all rewards.

    A reward of weight 0 is computed, logged, and watched by the alarms. It does not train the
    policy.
    """

    weight: float = Field(1.0, ge=0, description="weight in the combination; 0: only logged")

    @property
    def name(self) -> str:
        """Name of the reward in metrics and messages; unique in a recipe."""
        return str(self.kind)  # type: ignore[attr-defined]


class WerReward(BaseReward):
    """``exp(-2.5 x WER)``: the WER of Whisper's transcript against the prompt text.

    Chinese, Japanese and Korean use the CER. faster-whisper reads windows of ``window_seconds``
    instead of 30 s if the audio is shorter: on digit strings of 4.5 s, tiny.en needs 0.15 s a clip
    instead of 0.8 s (one core), and its WER stays 0.
    """

    removed_keys: ClassVar = {"scale": 2.5}

    kind: Literal["wer"] = "wer"
    backend: Literal["faster-whisper", "transformers"] = "faster-whisper"
    model: str = Field(
        "",
        description="folder or hub name of a model for the backend; empty: the packaged tiny.en",
    )
    window_seconds: float = Field(10.0, ge=4.0, le=30.0, description="input window of Whisper")
    batch_size: int = Field(8, gt=0, description="completions that are transcribed at once")

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.backend == "transformers" and not self.model:
            raise ValueError(
                'backend = "transformers" needs a model: name one, for example '
                '"openai/whisper-large-v3", or remove backend to use the packaged tiny.en'
            )
        return self

    @property
    def only_english(self) -> bool:
        """Whether the model's name says that it knows English only."""
        return knows_english_only(self.model)


class RateReward(BaseReward):
    """Speech rate: 1 between ``slowest`` and ``fastest`` characters of text a second.

    Outside the bounds, the reward is the ratio to the nearer bound: speech that takes twice as long
    as allowed scores 0.5. It keeps the policy from stretching or dropping sounds that Whisper
    tolerates.
    """

    kind: Literal["rate"] = "rate"
    slowest: float = Field(4.0, gt=0, description="characters a second")
    fastest: float = Field(25.0, gt=0, description="characters a second")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.slowest >= self.fastest:
            raise ValueError(f"slowest {self.slowest} is not below fastest {self.fastest}")
        return self


class EndReward(BaseReward):
    """1 for a completion that generates its end token before the token limit.

    Completions without an end token score 0 in all rewards. This reward lets a policy without
    intelligible speech learn to end first.
    """

    kind: Literal["end"] = "end"


class DnsmosReward(BaseReward):
    """``(DNSMOS P.835 overall - 1) / 4``."""

    kind: Literal["dnsmos"] = "dnsmos"


class SimilarityReward(BaseReward):
    """Speaker similarity: ``(cosine + 1) / 2`` of the embeddings of completion and voice prompt.

    Without a voice prompt, the first voice of the serving model is the reference. Similarities of
    different encoders are not comparable: the same pair may have 0.8 with one and 0.5 with another.
    """

    kind: Literal["similarity"] = "similarity"
    encoder: str = Field(
        RESEMBLYZER,
        description='"resemblyzer", "speaker_encoder" (the asset), or the folder of an encoder',
    )


class FunctionReward(BaseReward):
    """A Python function of your own: ``call = "package.module:function"``.

    It is called as ``function(batch, **options)``. ``batch`` is a list of
    :class:`tts_assets.rlhf.rewards.DecodedCompletion` (``wave``, ``rate``, ``text``, ``language``,
    ``voice``) that end and contain sound. It returns one float in [0, 1] for each. A score must
    depend on its completion alone: the batches depend on the workers. The function's name is the
    name of the reward.
    """

    kind: Literal["function"] = "function"
    call: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="package.module:function"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the function"
    )

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.call.partition(":")[2]


RewardConfig = Annotated[
    WerReward | RateReward | EndReward | DnsmosReward | SimilarityReward | FunctionReward,
    Field(discriminator="kind"),
]
