"""Rewards: what a listener would say of a completion, as numbers in [0, 1].

Each is a class that is called with usable completions (``panel.py`` scores the others zero) and
returns a :class:`Score` each, which depends on nothing but its completion. Models are loaded when
a reward is made, in the process that judges. One of your own needs no line here: ``function.py``.

A completion as it sounds, and what the rewards say of it.

Rewards that are functions of the user: found by name, checked, and part of the fingerprint.
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
from tts_assets.serving.streaming import AUDIBLE_FRACTION, audible_fraction


@dataclass(frozen=True)
class DecodedCompletion:
    """A completion: mono float32 ``wave`` at ``rate`` Hz, decoded once for all rewards.

    ``voice`` is the prompt it was said after; ``reference`` the wave of that prompt at the same
    rate, which the panel fills in where a reward asks for it.
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
        """Whether there is anything to judge: it ended, and is not silent."""
        return self.ended and audible_fraction(self.wave, self.rate) >= AUDIBLE_FRACTION

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate


@dataclass(frozen=True)
class Score:
    """One reward of one completion, in [0, 1]. Recognition also tells what was ``heard`` and its
    ``error``, the WER or CER."""

    value: float
    heard: str = ""
    error: float | None = None


@dataclass(frozen=True)
class RewardResult:
    """All rewards of one completion by name, their combination, what was heard and the WER (none
    without a reward that recognizes)."""

    rewards: dict[str, float]
    total: float
    wer: float | None
    heard: str


@dataclass(frozen=True)
class ScoringTask:
    """The completions that a reward is to score at once."""

    reward: str
    spoken: Sequence[DecodedCompletion]


class RewardError(RuntimeError):
    """A reward that cannot be had: the message names the reward, and what it was asked to judge."""


class UserRewardFunction:
    """Calls the function of a config, one thread at a time, and refuses what is no reward."""

    def __init__(self, config: FunctionReward) -> None:
        self.config = config
        self.function = find_function(config.call)
        self._lock = threading.Lock()

    def __call__(self, spoken: Sequence[DecodedCompletion]) -> list[Score]:
        with self._lock:
            found = self._called(spoken)
        if len(found) != len(spoken):
            raise RewardError(
                f"{self.config.call} returned {len(found)} scores for {len(spoken)} completions"
            )
        return [self._checked(value, one) for value, one in zip(found, spoken, strict=True)]

    def _called(self, spoken: Sequence[DecodedCompletion]) -> list[Any]:
        try:
            return list(self.function(list(spoken), **self.config.options))
        except Exception as error:
            texts = ", ".join(repr(one.text) for one in spoken)
            raise RewardError(f"{self.config.call} failed ({error!r}) at {texts}") from error

    def _checked(self, value: Any, spoken: DecodedCompletion) -> Score:
        score = float(value)
        if math.isnan(score) or not 0 <= score <= 1:
            raise RewardError(
                f"{self.config.call} returned {value!r} for {spoken.text!r}: a reward is a number "
                "from 0 to 1, clip or scale it in the function"
            )
        return Score(score)


def find_function(call: str) -> Callable[..., Sequence[float]]:
    """``package.module:function``; raises :class:`ConfigError` if there is none."""
    module, _, name = call.partition(":")
    source_file(call)
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise ConfigError(f"reward {call}: {module} has no function {name!r}")
    return function


def source_digest(call: str) -> str:
    """SHA-256 of the file of the function's module; what that imports does not count."""
    return sha256_file(source_file(call))


def source_file(call: str) -> Path:
    """The file of the function's module, without running it (only the packages around it)."""
    module = call.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(
            f"reward {call}: there is no module {module}; it must be installed, or lie below the "
            "folder from which Dagster is started"
        )
    return Path(spec.origin)


VOICES_KEPT = 4096  # embeddings of prompts, 1 kB each


class RewardFunction(Protocol):
    """Scores usable completions."""

    def __call__(self, spoken: Sequence[DecodedCompletion]) -> list[Score]: ...


class RewardTranscriber(Protocol):
    """A Whisper: clips and their languages in, texts out."""

    def __call__(
        self, clips: Sequence[tuple[NDArray[np.float32], int]], languages: Sequence[str]
    ) -> list[str]: ...


class WerRewardFunction:
    """``exp(-scale x WER)``, by Whisper; CER for languages without spaces."""

    def __init__(self, config: WerReward, device: str = "cpu", parallel: int = 1) -> None:
        self.config = config
        self.ear = open_ear(config, device, parallel)

    def __call__(self, spoken: Sequence[DecodedCompletion]) -> list[Score]:
        clips = [(one.wave, one.rate) for one in spoken]
        heard = self.ear(clips, [spoken_language(one.language) for one in spoken])
        return [self.score(*pair) for pair in zip(spoken, heard, strict=True)]

    def score(self, spoken: DecodedCompletion, heard: str) -> Score:
        """What ``heard`` is worth, where the text of ``spoken`` was to be said."""
        result = match(spoken.text, heard, spoken.language)
        error = result.cer if unspaced(spoken.language) else result.wer
        return Score(math.exp(-self.config.scale * error), heard, error)


def open_ear(config: WerReward, device: str, parallel: int) -> RewardTranscriber:
    """The Whisper that a config names; ``parallel`` calls may run at once."""
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
    """1 within the bounds; outside, the ratio to the nearer bound."""

    def __init__(self, config: RateReward) -> None:
        self.config = config

    def __call__(self, spoken: Sequence[DecodedCompletion]) -> list[Score]:
        return [Score(self._score(len(one.text) / one.seconds)) for one in spoken]

    def _score(self, rate: float) -> float:
        return min(1.0, rate / self.config.slowest, self.config.fastest / rate)


class EndRewardFunction:
    """1: what did not end is not usable, and never comes here."""

    def __call__(self, spoken: Sequence[DecodedCompletion]) -> list[Score]:
        return [Score(float(one.ended)) for one in spoken]


class DnsmosRewardFunction:
    """``(DNSMOS overall - 1) / 4``; too short to score is 0.

    Its windows of 9 s run one by one: in a batch each took a quarter longer, on a CPU whose caches
    hold one.
    """

    def __init__(self) -> None:
        self.scorer = DnsmosScorer()

    def __call__(self, spoken: Sequence[DecodedCompletion]) -> list[Score]:
        return [Score(self._score(self.scorer.heard(one.wave, one.rate))) for one in spoken]

    def _score(self, audio: NDArray[np.float32] | None) -> float:
        if audio is None:
            return 0.0
        overall = self.scorer.p835(audio)[2]
        return min(1.0, max(0.0, (overall - 1) / 4))


class SimilarityRewardFunction:
    """``(cosine + 1) / 2`` of the speaker embeddings of completion and voice prompt.

    Raises :class:`ValueError` for a voice prompt that holds no speech.
    """

    def __init__(self, config: SimilarityReward, device: str = "cpu") -> None:
        from tts_assets.speakers.encoder import open_voices  # 4 s of imports, in each worker

        self.encoder = open_voices(config.encoder, device)
        self.known: dict[bytes, Embedding] = {}

    def __call__(self, spoken: Sequence[DecodedCompletion]) -> list[Score]:
        voices = [self._voice(one) for one in spoken]
        own = self.encoder.embed_all([(one.wave, one.rate) for one in spoken])
        return [Score(self._score(*pair)) for pair in zip(own, voices, strict=True)]

    def _score(self, own: Embedding | None, voice: Embedding) -> float:
        """0 for too little speech to tell whose it is."""
        return 0.0 if own is None else min(1.0, max(0.0, (float(np.dot(own, voice)) + 1) / 2))

    def _voice(self, spoken: DecodedCompletion) -> Embedding:
        assert spoken.reference is not None, "the panel gives every completion a reference"
        key = hashlib.blake2b(spoken.reference.tobytes(), digest_size=16).digest()
        if key not in self.known:
            voice = self.encoder.embed(spoken.reference, spoken.rate)
            if voice is None:
                raise ValueError(
                    f"the voice prompt of {spoken.text!r} holds too little speech to compare a "
                    "voice with: take longer ones (prompts.voice_seconds of the recipe, or "
                    "serving.voice_seconds for the serving model's own), or leave the similarity "
                    "reward out"
                )
            if len(self.known) >= VOICES_KEPT:
                self.known.clear()
            self.known[key] = voice
        return self.known[key]


def build_reward(config: RewardConfig, device: str = "cpu", parallel: int = 1) -> RewardFunction:
    """The reward that a config describes; ``parallel`` threads may call it at once."""
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
