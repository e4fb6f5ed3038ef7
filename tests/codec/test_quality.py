"""Metrics of a resynthesis rank clips as listeners do, and are None if they do not apply."""

from __future__ import annotations

import numpy as np
import pytest

from tts_assets.codec.losses import (
    aligned,
    bit_rate,
    mel_distance,
    pesq,
    pitch,
    pitch_error,
    stft_distance,
    stoi,
)
from tts_assets.codec.model import Codec
from tts_assets.core.audio import Wave, resample


def test_noise_is_worse_than_the_codec_and_the_codec_than_the_original(
    vendored: Codec, speech: list[Wave]
) -> None:
    clip = max(speech, key=len)
    (made,) = vendored.decode(vendored.encode([clip]))
    noise = np.random.default_rng(0).normal(size=len(clip)).astype(np.float32) * clip.std()
    ways = [aligned(clip, other, 16_000) for other in (clip, made, clip + noise)]
    similar = [stoi(*pair) for pair in ways]
    assert similar[0] == pytest.approx(1) and similar[1] > similar[2]
    distances = [mel_distance(*pair) for pair in ways]
    assert distances[0] == 0 and 0 < distances[1] < distances[2]
    spectral = [stft_distance(*pair) for pair in ways]
    assert spectral[0] == 0 and 0 < spectral[1] < spectral[2]
    # Half the amplitude: a convergence of 1/2, and log 2 in every bin above the floor.
    assert stft_distance(clip, clip / 2) == pytest.approx(0.5 + np.log(2), abs=0.02)


def test_pesq_falls_with_noise(speech: list[Wave]) -> None:
    pytest.importorskip("pesq", reason="the extra pesq is not installed")
    clip = max(speech, key=len)
    noise = np.random.default_rng(0).normal(size=len(clip)).astype(np.float32) * clip.std()
    quiet, loud = (pesq(clip, clip + gain * noise) for gain in (0.01, 0.5))
    assert pesq(clip, clip) == pytest.approx(4.64, abs=0.01)
    assert quiet is not None and loud is not None and 1 <= loud < quiet
    assert pesq(np.zeros_like(clip), clip) is None


def test_pitch_is_found_in_cents(speech: list[Wave]) -> None:
    clip = max(speech, key=len)
    higher = resample(clip, 16_000, 15_102)  # played at 16 kHz, a semitone higher
    contour = pitch(clip)
    assert 0.2 < np.mean(~np.isnan(contour)) < 1
    stretched = np.interp(
        np.arange(len(pitch(higher))) * 16_000 / 15_102, np.arange(len(contour)), contour
    )
    error = pitch_error(stretched, pitch(higher))
    assert error is not None and 60 < error.cents < 140
    assert pitch_error(contour, contour) == (0, 0)
    assert pitch_error(contour, np.full_like(contour, np.nan)) is None


def test_a_clip_that_is_too_short_has_no_metrics() -> None:
    short = np.random.default_rng(0).normal(size=2_000).astype(np.float32)
    assert stoi(short, short) is None
    assert pesq(short, short) is None


def test_bit_rate_follows_from_the_codebook() -> None:
    assert bit_rate(50, (65_536,)) == 800
    assert bit_rate(70, (1024, 4096)) == 770
