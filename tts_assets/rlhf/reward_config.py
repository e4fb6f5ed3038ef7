"""``[[rlhf.<name>.rewards]]``: what a listener would say, as configurations with a ``kind``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tts_assets.audio_models.whisper import knows_english_only
from tts_assets.core.config import Config
from tts_assets.speakers.config import RESEMBLYZER


class BaseReward(Config):
    """What every reward has: a share in the combination, and a name in metrics.

    One of ``weight`` 0 is judged, logged and watched by the alarms; the policy does not follow it.
    """

    weight: float = Field(1.0, ge=0)

    @property
    def name(self) -> str:
        return str(self.kind)  # type: ignore[attr-defined]


class WerReward(BaseReward):
    """``exp(-scale x WER)`` of a Whisper transcript in the prompt's language; CER for zh, ja, ko.

    ``model``: with ``backend`` faster-whisper a CTranslate2 folder or a name on the hub
    ("large-v3"), empty for the packaged tiny.en; with transformers a folder or name of a
    transformers Whisper. faster-whisper reads windows of ``window_seconds`` instead of 30 s where
    the audio is shorter: on 4.5 s digit strings tiny.en still has WER 0, at 0.15 s a clip instead
    of 0.8 (one core).
    """

    kind: Literal["wer"] = "wer"
    scale: float = Field(2.5, gt=0)
    backend: Literal["faster-whisper", "transformers"] = "faster-whisper"
    model: str = ""
    window_seconds: float = Field(10.0, ge=4.0, le=30.0)
    batch_size: int = Field(8, gt=0)

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if self.backend == "transformers" and not self.model:
            raise ValueError(
                'backend = "transformers" needs a model: name one, for example '
                '"openai/whisper-large-v3", or leave the backend out for the packaged tiny.en'
            )
        return self

    @property
    def only_english(self) -> bool:
        return knows_english_only(self.model)


class RateReward(BaseReward):
    """1 while the audio has between ``slowest`` and ``fastest`` characters of text a second.

    Outside it falls as the ratio to the nearer bound: twice too long scores one half. Keeps the
    policy from stretching or dropping what Whisper forgives.
    """

    kind: Literal["rate"] = "rate"
    slowest: float = Field(4.0, gt=0)
    fastest: float = Field(25.0, gt=0)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.slowest >= self.fastest:
            raise ValueError(f"slowest {self.slowest} is not below fastest {self.fastest}")
        return self


class EndReward(BaseReward):
    """1 for speech that said its end token before the token limit.

    What never ends scores zero in every reward anyway; this one lets a young policy, whose words
    nobody understands yet, learn to end first.
    """

    kind: Literal["end"] = "end"


class DnsmosReward(BaseReward):
    """``(DNSMOS overall - 1) / 4``."""

    kind: Literal["dnsmos"] = "dnsmos"


class SimilarityReward(BaseReward):
    """``(cosine + 1) / 2`` of the speaker embeddings of the completion and of the voice prompt.

    Without a voice prompt the serving model's first voice stands for the speaker. ``encoder``:
    "resemblyzer", "speaker_encoder" (the asset), or a folder of one. Encoders have scales of
    their own: what is alike to one is at 0.8, to another at 0.5.
    """

    kind: Literal["similarity"] = "similarity"
    encoder: str = RESEMBLYZER


class FunctionReward(BaseReward):
    """A function of your own: ``call = "package.module:function"``.

    It is called as ``function(batch, **options)`` with a list of
    :class:`tts_assets.rlhf.rewards.Spoken` (``wave``, ``rate``, ``text``, ``language``, ``voice``),
    all of them usable, and returns a float in [0, 1] for each. Its name is that of the reward. A
    score must depend on its completion alone: batches are cut as it suits the workers.
    """

    kind: Literal["function"] = "function"
    call: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.call.partition(":")[2]


RewardConfig = Annotated[
    WerReward | RateReward | EndReward | DnsmosReward | SimilarityReward | FunctionReward,
    Field(discriminator="kind"),
]
