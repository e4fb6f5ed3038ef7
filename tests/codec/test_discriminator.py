"""The judges of the adversarial stage."""

from __future__ import annotations

import torch

from tts_assets.audio import Wave
from tts_assets.codec.config import AdversarialConfig
from tts_assets.codec.discriminator import (
    Discriminators,
    discriminator_loss,
    generator_losses,
)


def test_every_fft_size_judges_every_frame() -> None:
    judges = Discriminators(AdversarialConfig(sizes=(512, 256), channels=4))
    judged = judges(torch.randn(3, 3200))
    for size, (score, features) in zip((512, 256), judged, strict=True):
        frames = 3200 // (size // 4) + 1
        assert score.shape[:3] == (3, 1, frames)
        assert score.shape[3] == features[-1].shape[3] < size // 2 // 16
        assert [feature.shape[1] for feature in features] == [4, 8, 8, 8]


def test_judges_learn_to_tell_speech_from_noise(waves: list[Wave]) -> None:
    torch.manual_seed(0)
    judges = Discriminators(AdversarialConfig(sizes=(256,), channels=4))
    optimizer = torch.optim.AdamW(judges.parameters(), lr=3e-3)
    real = torch.from_numpy(waves[0][:8000]).unsqueeze(0)
    made = torch.randn_like(real) * real.std()
    for _ in range(60):
        true, false = ([score for score, _ in judges(wave)] for wave in (real, made))
        loss = discriminator_loss(true, false)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    fooled, features = generator_losses(judges(real), judges(real))
    caught, _ = generator_losses(judges(real), judges(made))
    assert float(features.detach()) == 0.0
    assert float(fooled.detach()) < float(caught.detach())
