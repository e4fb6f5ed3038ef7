"""The discriminators of the adversarial stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tts_assets.codec.config import AdversarialConfig, DecoderAdversarialConfig
from tts_assets.codec.losses import (
    Discriminators,
    Objective,
    discriminator_loss,
    generator_losses,
)
from tts_assets.core.audio import Wave


@pytest.mark.parametrize("overlap", [2, 4])
def test_every_fft_size_scores_every_frame(overlap: int) -> None:
    class Config(AdversarialConfig):
        pass

    Config.overlap = overlap
    discriminators = Discriminators(Config(sizes=(512, 256), channels=4))
    scored = discriminators(torch.randn(3, 3200))
    for size, (score, features) in zip((512, 256), scored, strict=True):
        frames = 3200 // (size // overlap) + 1
        assert score.shape[:3] == (3, 1, frames)
        assert score.shape[3] == features[-1].shape[3] < size // 2 // 16
        assert [feature.shape[1] for feature in features] == [4, 8, 8, 8]


def test_every_period_scores_its_columns() -> None:
    config = AdversarialConfig(sizes=(78, 2296), periods=(2, 11), channels=4)
    scored = Discriminators(config)(torch.randn(2, 4800))
    assert len(scored) == 4
    for period, (score, features) in zip((2, 11), scored[2:], strict=True):
        assert score.shape[:2] == (2, 1) and score.shape[3] == period
        assert [feature.shape[1] for feature in features] == [2, 8, 32, 128]


def test_a_decoder_has_the_discriminators_of_the_reference_trainer() -> None:
    """FFT sizes with a hop of half of each, and periods, as inworld-ai/tts configures them."""
    discriminators = Discriminators(DecoderAdversarialConfig(channels=4))
    scores = [score for score, _ in discriminators(torch.randn(1, 9600))]
    sizes = (78, 126, 206, 334, 542, 876, 1418, 2296)
    assert [score.shape[2] for score in scores[:8]] == [9600 // (size // 2) + 1 for size in sizes]
    assert [score.shape[3] for score in scores[8:]] == [2, 3, 5, 7, 11]


@pytest.mark.parametrize("objective", ["hinge", "least_squares"])
@pytest.mark.parametrize("kinds", [{"sizes": (256,)}, {"sizes": (78,), "periods": (2, 5)}])
def test_discriminators_learn_to_distinguish_speech_from_noise(
    waves: list[Wave], objective: Objective, kinds: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    discriminators = Discriminators(AdversarialConfig(channels=4, **kinds))
    optimizer = torch.optim.AdamW(discriminators.parameters(), lr=3e-3)
    real = torch.from_numpy(waves[0][:8000]).unsqueeze(0)
    made = torch.randn_like(real) * real.std()
    for _ in range(60):
        true, false = ([score for score, _ in discriminators(wave)] for wave in (real, made))
        loss = discriminator_loss(true, false, objective)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    fooled, features = generator_losses(discriminators(real), discriminators(real), objective)
    caught, _ = generator_losses(discriminators(real), discriminators(made), objective)
    assert float(features.detach()) == 0.0
    assert float(fooled.detach()) < float(caught.detach())
