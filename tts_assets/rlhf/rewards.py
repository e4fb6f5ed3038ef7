"""Reward functions: each scores decoded completions with numbers in [0, 1].

A reward function gets usable completions only; ``reward_executor.py`` scores all others with 0. The
score of a completion does not depend on its batch. Models are loaded when the reward function is
built, in the process that computes the rewards.

Users add a reward with a Python function and a line of configuration (:class:`UserRewardFunction`).
A reward of this package needs a configuration in ``reward_config.py``, a class here, and a line in
:func:`build_reward`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.speaker_similarity import Embedding
from tts_assets.audio_models.transcription import Transcriber
from tts_assets.audio_models.wer import match
from tts_assets.audio_models.whisper import spoken_language, unspaced
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.config import ConfigError
from tts_assets.rlhf.reward_config import (
    DnsmosReward,
    EndReward,
    FunctionReward,
    RateReward,
    RewardConfig,
    SimilarityReward,
    WerReward,
)
from tts_assets.serving.config import Voice
from tts_assets.serving.pieces import AUDIBLE_FRACTION, audible_fraction

WER_SCALE = 2.5  # of exp(-scale x WER), as in the reference trainer
MAX_REFERENCES = 4096  # cached embeddings of voice prompts, 1 kB each


class RewardError(RuntimeError):
    """A reward function failed. The message names the reward and the completion."""


@dataclass(frozen=True)
class DecodedCompletion:
    """A completion with its waveform, which is decoded once for all rewards.

    Attributes:
        text: the text that the policy had to synthesize.
        wave: mono float32 waveform, shape (samples,).
        rate: sample rate in Hz.
        ended: whether the policy generated the end token before the token limit.
        voice: the voice prompt; None: none.
        language: language tag of the text, such as "en" or "en-GB".
        reference: waveform of the voice prompt at ``rate``. :class:`RewardExecutor` sets it if a
            reward needs it.
    """

    text: str
    wave: NDArray[np.float32]
    rate: int
    ended: bool
    voice: Voice | None = None
    language: str = "en"
    reference: NDArray[np.float32] | None = None

    @property
    def usable(self) -> bool:
        """Whether the completion ends and at least a fifth of its frames is audible."""
        return self.ended and audible_fraction(self.wave, self.rate) >= AUDIBLE_FRACTION

    @property
    def seconds(self) -> float:
        """Duration of the waveform."""
        return len(self.wave) / self.rate


@dataclass(frozen=True)
class Score:
    """The value of one reward function for one completion, in [0, 1].

    The WER reward also returns its ``transcript`` and the ``error_rate``, the WER or CER.
    """

    value: float
    transcript: str = ""
    error_rate: float | None = None


@dataclass(frozen=True)
class RewardResult:
    """All rewards of one completion by name, their combination, the transcript and the WER.

    ``wer`` is None for a recipe without a WER reward.
    """

    rewards: dict[str, float]
    total: float
    wer: float | None
    transcript: str


@dataclass(frozen=True)
class ScoringTask:
    """The name of a reward, and completions that it scores as one batch."""

    reward: str
    completions: Sequence[DecodedCompletion]


class RewardFunction(Protocol):
    """Scores usable completions: one :class:`Score` each, in their order."""

    def __call__(self, completions: Sequence[DecodedCompletion]) -> list[Score]: ...


class RewardTranscriber(Protocol):
    """Transcribes clips, pairs of a waveform (samples,) and its rate, in the given languages."""

    def __call__(
        self, clips: Sequence[tuple[NDArray[np.float32], int]], languages: Sequence[str]
    ) -> list[str]: ...


def build_reward(config: RewardConfig, device: str = "cpu", parallel: int = 1) -> RewardFunction:
    """Loads the reward function of a configuration.

    Args:
        config: the configuration.
        device: device of Whisper and of the speaker encoder, such as "cuda:1".
        parallel: how many threads may call the function at once.
    """
    if isinstance(config, WerReward):
        return WerRewardFunction(config, device, parallel)
    if isinstance(config, RateReward):
        return RateRewardFunction(config)
    if isinstance(config, EndReward):
        return EndRewardFunction()
    if isinstance(config, DnsmosReward):
        return DnsmosRewardFunction()
    if isinstance(config, FunctionReward):
        return UserRewardFunction(config)
    assert isinstance(config, SimilarityReward)
    return SimilarityRewardFunction(config, device)


class WerRewardFunction:
    """``exp(-2.5 x WER)`` of Whisper's transcript; CER for languages without spaces."""

    def __init__(self, config: WerReward, device: str = "cpu", parallel: int = 1) -> None:
        self.config = config
        self.transcriber = open_transcriber(config, device, parallel)

    def __call__(self, completions: Sequence[DecodedCompletion]) -> list[Score]:
        clips = [(one.wave, one.rate) for one in completions]
        languages = [spoken_language(one.language) for one in completions]
        transcripts = self.transcriber(clips, languages)
        return [self.score(*pair) for pair in zip(completions, transcripts, strict=True)]

    def score(self, completion: DecodedCompletion, transcript: str) -> Score:
        """Scores ``transcript`` against the text of ``completion``."""
        result = match(completion.text, transcript, completion.language)
        error_rate = result.cer if unspaced(completion.language) else result.wer
        return Score(math.exp(-WER_SCALE * error_rate), transcript, error_rate)


def open_transcriber(config: WerReward, device: str, parallel: int) -> RewardTranscriber:
    """Loads the Whisper model of ``config``, for ``parallel`` concurrent calls."""
    if config.backend == "transformers":
        from tts_assets.audio_models.transcription import TransformersTranscriber

        return TransformersTranscriber(config.model, device=device, batch_size=config.batch_size)
    return Transcriber(
        config.model,
        language="en",
        beam_size=1,
        window_seconds=config.window_seconds,
        batch_size=config.batch_size,
        threads=1,
        parallel=parallel,
        device=device,
    )


class RateRewardFunction:
    """1 within the bounds of the speech rate; outside, the ratio to the nearer bound."""

    def __init__(self, config: RateReward) -> None:
        self.config = config

    def __call__(self, completions: Sequence[DecodedCompletion]) -> list[Score]:
        return [Score(self._score(len(one.text) / one.seconds)) for one in completions]

    def _score(self, rate: float) -> float:
        return min(1.0, rate / self.config.slowest, self.config.fastest / rate)


class EndRewardFunction:
    """1 for each completion that ends; others are unusable and score 0."""

    def __call__(self, completions: Sequence[DecodedCompletion]) -> list[Score]:
        return [Score(float(one.ended)) for one in completions]


class DnsmosRewardFunction:
    """``(DNSMOS P.835 overall - 1) / 4``; 0 for audio that is too short to score.

    The windows of 9 s run one by one. In a batch, each took a quarter longer on a CPU whose caches
    hold one window.
    """

    def __init__(self) -> None:
        self.scorer = DnsmosScorer()

    def __call__(self, completions: Sequence[DecodedCompletion]) -> list[Score]:
        return [Score(self._score(self.scorer.prepare(one.wave, one.rate))) for one in completions]

    def _score(self, audio: NDArray[np.float32] | None) -> float:
        if audio is None:
            return 0.0
        overall = self.scorer.p835(audio)[2]
        return min(1.0, max(0.0, (overall - 1) / 4))


class SimilarityRewardFunction:
    """``(cosine + 1) / 2`` of the speaker embeddings of completion and voice prompt.

    Completions with too little speech for an embedding score 0. Raises :class:`ValueError` for a
    voice prompt with too little speech.
    """

    def __init__(self, config: SimilarityReward, device: str = "cpu") -> None:
        from tts_assets.speakers.encoder import open_voices  # 4 s of imports, in each worker

        self.encoder = open_voices(config.encoder, device)
        self.references: dict[bytes, Embedding] = {}  # by the digest of the waveform

    def __call__(self, completions: Sequence[DecodedCompletion]) -> list[Score]:
        references = [self._reference(one) for one in completions]
        embeddings = self.encoder.embed_all([(one.wave, one.rate) for one in completions])
        return [Score(self._score(*pair)) for pair in zip(embeddings, references, strict=True)]

    def _score(self, embedding: Embedding | None, reference: Embedding) -> float:
        if embedding is None:
            return 0.0
        return min(1.0, max(0.0, (float(np.dot(embedding, reference)) + 1) / 2))

    def _reference(self, completion: DecodedCompletion) -> Embedding:
        """Returns the embedding of the voice prompt; each prompt is embedded once."""
        assert completion.reference is not None, "RewardExecutor sets the reference"
        key = hashlib.blake2b(completion.reference.tobytes(), digest_size=16).digest()
        if key not in self.references:
            embedding = self.encoder.embed(completion.reference, completion.rate)
            if embedding is None:
                raise ValueError(
                    f"the voice prompt of {completion.text!r} contains too little speech for a "
                    "speaker embedding: use longer voice prompts (prompts.voice_seconds of the "
                    "recipe, or serving.voice_seconds for the voices of the serving model), or "
                    "remove the similarity reward"
                )
            if len(self.references) >= MAX_REFERENCES:
                self.references.clear()
            self.references[key] = embedding
        return self.references[key]


class UserRewardFunction:
    """Calls the user's function in one thread at a time, and validates what it returns.

    Raises :class:`RewardError` if the function raises, returns another number of scores, or returns
    a score outside [0, 1]. Raises :class:`ConfigError` if there is no such function.
    """

    def __init__(self, config: FunctionReward) -> None:
        self.config = config
        self.function = find_function(config.call)
        self._lock = threading.Lock()

    def __call__(self, completions: Sequence[DecodedCompletion]) -> list[Score]:
        with self._lock:
            values = self._call(completions)
        if len(values) != len(completions):
            raise RewardError(
                f"{self.config.call} returned {len(values)} scores for {len(completions)} "
                "completions: return one for each"
            )
        return [self._validated(*pair) for pair in zip(values, completions, strict=True)]

    def _call(self, completions: Sequence[DecodedCompletion]) -> list[Any]:
        try:
            return list(self.function(list(completions), **self.config.options))
        except Exception as error:
            texts = ", ".join(repr(one.text) for one in completions)
            raise RewardError(f"{self.config.call} failed ({error!r}) at {texts}") from error

    def _validated(self, value: Any, completion: DecodedCompletion) -> Score:
        score = float(value)
        if math.isnan(score) or not 0 <= score <= 1:
            raise RewardError(
                f"{self.config.call} returned {value!r} for {completion.text!r}: a reward is a "
                "number from 0 to 1, clip or scale it in the function"
            )
        return Score(score)


def find_function(call: str) -> Callable[..., Sequence[float]]:
    """Imports ``package.module:function``. Raises :class:`ConfigError` if there is none."""
    module, _, name = call.partition(":")
    source_file(call)
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise ConfigError(f"reward {call}: {module} has no function {name!r}")
    return function


def function_digests(rewards: Sequence[RewardConfig]) -> dict[str, str]:
    """Returns the digest of the module's file for each user function, by its ``call``.

    Raises :class:`ConfigError` if there is no such module.
    """
    calls = [reward.call for reward in rewards if isinstance(reward, FunctionReward)]
    return {call: source_digest(call) for call in calls}


def source_digest(call: str) -> str:
    """Returns the SHA-256 of the module's file. Modules that it imports are not included."""
    return sha256_file(source_file(call))


def source_file(call: str) -> Path:
    """Returns the file of the module of ``call``, without importing the module itself.

    Raises :class:`ConfigError` if there is no such module.
    """
    module = call.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(
            f"reward {call}: there is no module {module}; install it, or place it below the folder "
            "from which Dagster is started"
        )
    return Path(spec.origin)
