"""The discriminators of the adversarial stage."""

from __future__ import annotations

import pytest
import torch

from tts_assets.codec.decoder import ReferenceDiscriminators
from tts_assets.codec.losses import Discriminators
from tts_assets.codec.training_config import DiscriminatorSizes
from tts_assets.core.audio import Wave


def test_every_fft_size_scores_every_frame() -> None:
    discriminators = Discriminators(DiscriminatorSizes((512, 256), (), 4))
    scored = discriminators(torch.randn(3, 3200))
    for size, (score, features) in zip((512, 256), scored, strict=True):
        frames = 3200 // (size // 4) + 1
        assert score.shape[:3] == (3, 1, frames)
        assert score.shape[3] == features[-1].shape[3] < size // 2 // 16
        assert [feature.shape[1] for feature in features] == [4, 8, 8, 8]


def test_every_period_scores_its_columns() -> None:
    sizes = DiscriminatorSizes((78, 2296), (2, 11), 4)
    scored = Discriminators(sizes)(torch.randn(2, 4800))
    assert len(scored) == 4
    for period, (score, features) in zip((2, 11), scored[2:], strict=True):
        assert score.shape[:2] == (2, 1) and score.shape[3] == period
        assert [feature.shape[1] for feature in features] == [2, 8, 32, 128]


@pytest.mark.parametrize("kind", [Discriminators, ReferenceDiscriminators])
@pytest.mark.parametrize("sizes", [((256,), ()), ((78,), (2, 5))])
def test_discriminators_learn_to_distinguish_speech_from_noise(
    waves: list[Wave], kind: type[Discriminators], sizes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    discriminators = kind(DiscriminatorSizes(*sizes, channels=4))
    optimizer = torch.optim.AdamW(discriminators.parameters(), lr=3e-3)
    real = torch.from_numpy(waves[0][:8000]).unsqueeze(0)
    made = torch.randn_like(real) * real.std()
    for _ in range(60):
        true, false = ([score for score, _ in discriminators(wave)] for wave in (real, made))
        loss = discriminators.loss(true, false)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    fooled, features = discriminators.generator_losses(discriminators(real), discriminators(real))
    caught, _ = discriminators.generator_losses(discriminators(real), discriminators(made))
    assert float(features.detach()) == 0.0
    assert float(fooled.detach()) < float(caught.detach())
