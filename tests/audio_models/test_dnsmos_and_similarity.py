"""DNSMOS and the speaker encoder on real clips."""

from __future__ import annotations

import numpy as np
import pytest

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.speaker_similarity import SpeakerEncoder, SpeakerSimilarity
from tts_assets.core.audio import Clip

Recordings = dict[str, tuple[str, Clip]]


def noise(seconds: float) -> np.ndarray:
    samples = int(16_000 * seconds)
    return (0.1 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)


def test_a_recording_scores_higher_than_with_noise(recordings: Recordings) -> None:
    clip = recordings["conf-invalid"][1]
    score = DnsmosScorer()
    clean, noisy = score(clip.wave, clip.rate), score(clip.wave + noise(clip.seconds), clip.rate)
    assert clean is not None
    assert noisy is not None
    assert clean.p808 > 3.3
    assert clean.p808 > noisy.p808 + 0.5
    assert clean.overall > noisy.overall
    assert clean == score(clip.wave, clip.rate)
    assert score(clip.wave[:800], clip.rate) is None


def test_the_same_speaker_is_more_similar_than_a_lower_voice(recordings: Recordings) -> None:
    reference, other = recordings["agent-incorrect"][1], recordings["conf-invalid"][1]
    similarity = SpeakerSimilarity(SpeakerEncoder(), [(reference.wave, reference.rate)])
    same = similarity(other.wave, other.rate)
    lower = similarity(other.wave, 10_000)  # played slower: a lower voice
    assert same is not None
    assert lower is not None
    assert same > 0.8
    assert same > lower + 0.1
    assert similarity(np.zeros(16_000, dtype=np.float32), 16_000) is None


def test_silent_references_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the 1 reference clips"):
        SpeakerSimilarity(SpeakerEncoder(), [(np.zeros(16_000, dtype=np.float32), 16_000)])
