"""Rewards: what a listener would say of a completion, as numbers in [0, 1].

Each completion is decoded once; all rewards hear that waveform. Recognition runs in batches over
the whole rollout. Speech that is silent, empty or never ended scores zero in every reward.

A new reward is a config class in ``config.py`` with a ``kind``, a class here with ``__call__``,
and an entry in :func:`build_reward`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tts_assets.hearing.naturalness import NaturalnessScorer
from tts_assets.hearing.speaker_similarity import SpeakerEncoder, SpeakerSimilarity
from tts_assets.hearing.text_match import UNSPACED, match
from tts_assets.hearing.transcription import Transcriber
from tts_assets.rlhf.config import (
    DnsmosReward,
    RateReward,
    RewardConfig,
    SimilarityReward,
    WerReward,
)
from tts_assets.serving.config import Voice
from tts_assets.serving.synthesis import Synthesizer
from tts_assets.speakers.source import resolve

EMPTY_WER = 5.0  # the reference trainer's, for audio in which there is nothing to recognize
SILENCE = 1e-3  # -60 dBFS: below this peak nothing is audible


@dataclass(frozen=True)
class Spoken:
    """A completion as it sounds: mono float32 at ``rate`` Hz. ``heard`` is filled by WER."""

    text: str
    wave: NDArray[np.float32]
    rate: int
    ended: bool
    voice: Voice | None = None

    @property
    def usable(self) -> bool:
        """Whether there is anything to judge."""
        return self.ended and audible(self.wave)


@dataclass(frozen=True)
class Verdict:
    """All rewards of one completion by name, and what was heard (empty without a WER reward)."""

    rewards: dict[str, float]
    wer: float
    heard: str


class Reward(Protocol):
    """Scores usable completions, each in [0, 1]."""

    def __call__(self, spoken: Sequence[Spoken]) -> list[float]: ...


def audible(wave: NDArray[np.float32]) -> bool:
    return bool(len(wave)) and float(np.abs(wave).max()) >= SILENCE


class Intelligibility:
    """``exp(-scale x WER)``, by Whisper; CER for languages without spaces."""

    def __init__(self, config: WerReward, threads: int) -> None:
        self.config = config
        self.transcriber = Transcriber(
            config.model,
            language=config.language,
            beam_size=1,
            window_seconds=config.window_seconds,
            batch_size=config.batch_size,
            threads=threads,
        )
        self.heard: list[str] = []
        self.errors: list[float] = []

    def __call__(self, spoken: Sequence[Spoken]) -> list[float]:
        self.errors, self.heard = self.error_rates(spoken)
        return [math.exp(-self.config.scale * error) for error in self.errors]

    def error_rates(self, spoken: Sequence[Spoken]) -> tuple[list[float], list[str]]:
        """WER (or CER) and transcript of each; inaudible audio is not transcribed: WER 5."""
        voiced = [i for i, one in enumerate(spoken) if audible(one.wave)]
        found = self.transcriber([(spoken[i].wave, spoken[i].rate) for i in voiced])
        heard = [""] * len(spoken)
        for i, text in zip(voiced, found, strict=True):
            heard[i] = text
        errors = [self._error(one, text) for one, text in zip(spoken, heard, strict=True)]
        return errors, heard

    def _error(self, spoken: Spoken, heard: str) -> float:
        if not audible(spoken.wave):
            return EMPTY_WER
        result = match(spoken.text, heard, self.config.language)
        return result.cer if self.config.language in UNSPACED else result.wer


class SpeakingRate:
    """1 within the bounds; outside, the ratio to the nearer bound."""

    def __init__(self, config: RateReward) -> None:
        self.config = config

    def __call__(self, spoken: Sequence[Spoken]) -> list[float]:
        return [self._score(len(one.text) * one.rate / len(one.wave)) for one in spoken]

    def _score(self, rate: float) -> float:
        return min(1.0, rate / self.config.slowest, self.config.fastest / rate)


class Naturalness:
    """``(DNSMOS overall - 1) / 4``; too short to score is 0."""

    def __init__(self) -> None:
        self.scorer = NaturalnessScorer()

    def __call__(self, spoken: Sequence[Spoken]) -> list[float]:
        scores = [self.scorer(one.wave, one.rate) for one in spoken]
        return [0.0 if s is None else min(1.0, max(0.0, (s.overall - 1) / 4)) for s in scores]


class SameVoice:
    """``(cosine + 1) / 2`` of the speaker embeddings of completion and voice prompt."""

    def __init__(self, config: SimilarityReward, synthesizer: Synthesizer) -> None:
        self.synthesizer = synthesizer
        self.encoder = SpeakerEncoder(resolve(config.speaker_encoder, Path()))
        self.known: dict[str, SpeakerSimilarity] = {}

    def __call__(self, spoken: Sequence[Spoken]) -> list[float]:
        scores = [self._voice(one.voice)(one.wave, one.rate) for one in spoken]
        return [0.0 if score is None else (score + 1) / 2 for score in scores]

    def _voice(self, voice: Voice | None) -> SpeakerSimilarity:
        if voice is None:
            voices = self.synthesizer.card.voices
            if not voices:
                raise ValueError(
                    "the similarity reward needs a voice: the serving model has none registered, "
                    "set serving.voices, or use prompts with voice_prompts"
                )
            voice = voices[min(voices)]
        if voice.source not in self.known:
            wave = self.synthesizer.codec.decode([np.asarray(voice.codes)])[0]
            reference = (wave, self.synthesizer.sample_rate)
            self.known[voice.source] = SpeakerSimilarity(self.encoder, [reference])
        return self.known[voice.source]


def build_reward(config: RewardConfig, synthesizer: Synthesizer, threads: int) -> Reward:
    """The reward that a config describes."""
    if isinstance(config, WerReward):
        return Intelligibility(config, threads)
    if isinstance(config, RateReward):
        return SpeakingRate(config)
    if isinstance(config, DnsmosReward):
        return Naturalness()
    assert isinstance(config, SimilarityReward)
    return SameVoice(config, synthesizer)


class Panel:
    """All rewards of a recipe."""

    def __init__(
        self, configs: Sequence[RewardConfig], synthesizer: Synthesizer, threads: int = 1
    ) -> None:
        self.rewards = {c.kind: build_reward(c, synthesizer, threads) for c in configs}

    def judge(self, spoken: Sequence[Spoken]) -> list[Verdict]:
        """One verdict a completion."""
        usable = [i for i, one in enumerate(spoken) if one.usable]
        scores = {name: [0.0] * len(spoken) for name in self.rewards}
        errors, heard = [EMPTY_WER] * len(spoken), [""] * len(spoken)
        for name, reward in self.rewards.items():
            found = reward([spoken[i] for i in usable])
            for i, score in zip(usable, found, strict=True):
                scores[name][i] = score
            if isinstance(reward, Intelligibility):
                for i, error, text in zip(usable, reward.errors, reward.heard, strict=True):
                    errors[i], heard[i] = error, text
        return [
            Verdict({name: scores[name][i] for name in scores}, errors[i], heard[i])
            for i in range(len(spoken))
        ]
