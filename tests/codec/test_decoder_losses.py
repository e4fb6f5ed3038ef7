"""Decoder losses against numbers of the reference trainer (inworld-ai/tts, commit 6a3d36c).

The numbers are the output of its classes for the waveforms of :func:`clips` and the weights of
:func:`fill`. torchaudio's filters were replaced by the equal ones of librosa.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tts_assets.codec.decoder import MelLoss, ReferenceDiscriminators, level_loss
from tts_assets.codec.training_config import REFERENCE, DecoderAdversarialConfig
from tts_assets.core.audio import Wave

SPECTRAL = {"loss": 7.7925897, "adversarial": 7.7921224, "features": 0.9796648}
PERIODIC = {"loss": 4.9105172, "adversarial": 4.9087405, "features": 0.2551696}


def clips() -> tuple[Tensor, Tensor]:
    """Two recordings of one second, (2, 16000), and what a decoder could make of them."""
    time = torch.arange(16_000, dtype=torch.float64) / 16_000
    one = 0.3 * torch.sin(2 * math.pi * 220 * time) * (1 + 0.5 * torch.sin(2 * math.pi * 3 * time))
    one = one + 0.1 * torch.sin(2 * math.pi * 900 * time**2)
    two = 0.2 * torch.sin(2 * math.pi * (130 + 40 * time) * time)
    two = two + 0.05 * torch.sin(2 * math.pi * 3100 * time)
    real = torch.stack([one, two])
    noise = torch.sin(2 * math.pi * 2500 * time) * torch.cos(2 * math.pi * 5 * time)
    return real.float(), (0.8 * real + 0.02 * noise).float()


@torch.no_grad()
def fill(discriminators: nn.Module) -> None:
    """Weights and biases from sines."""
    for number, one in enumerate(discriminators.get_submodule("judges").children()):
        layers: list[Any] = [*one.get_submodule("layers").children(), one.get_submodule("output")]
        for depth, layer in enumerate(layers):
            index = torch.arange(layer.weight.numel(), dtype=torch.float64)
            scale = math.sqrt(2 / layer.weight[0].numel())
            weight = torch.sin(0.7 * index + 6 * number + depth) * scale
            layer.weight = weight.view_as(layer.weight).float()
            layer.bias.copy_(0.01 * torch.cos(torch.arange(len(layer.bias)).double()))


@pytest.mark.parametrize(
    ("rate", "wanted"), [(16_000, 1.2095292), (24_000, 1.0543787), (48_000, 0.8543151)]
)
def test_the_mel_loss_equals_the_reference(rate: int, wanted: float) -> None:
    real, made = clips()
    assert float(MelLoss(rate)(made, real)) == pytest.approx(wanted, rel=1e-5)


def test_the_level_loss_equals_the_reference() -> None:
    real, made = clips()
    assert float(level_loss(made, real)) == pytest.approx(3.6717339, rel=1e-5)


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [({"periods": ()}, SPECTRAL), ({"sizes": ()}, PERIODIC)],
    ids=["spectrograms", "periods"],
)
def test_adversarial_losses_equal_the_reference(
    kinds: dict[str, Any], wanted: dict[str, float]
) -> None:
    discriminators = ReferenceDiscriminators(REFERENCE._replace(**kinds))
    fill(discriminators)
    real, made = clips()
    with torch.no_grad():
        scored, generated = discriminators(real), discriminators(made)
    loss = discriminators.loss([score for score, _ in scored], [score for score, _ in generated])
    adversarial, features = discriminators.generator_losses(scored, generated)
    assert all(len(found) == 5 for _, found in scored)
    assert float(loss) == pytest.approx(wanted["loss"], rel=1e-5)
    assert float(adversarial) == pytest.approx(wanted["adversarial"], rel=1e-5)
    assert float(features) == pytest.approx(wanted["features"], rel=1e-5)


def test_the_discriminators_have_the_size_of_the_reference() -> None:
    discriminators = ReferenceDiscriminators(DecoderAdversarialConfig().discriminators)
    count = sum(parameter.numel() for parameter in discriminators.parameters())
    assert count == 10_284_730 + 18_097_936  # with the norms of the weights


def test_losses_of_silence_are_finite(waves: list[Wave]) -> None:
    speech = torch.from_numpy(waves[0][:16_000]).unsqueeze(0)
    for target in (torch.zeros_like(speech), speech):
        made = torch.zeros_like(speech).requires_grad_()
        loss = level_loss(made, target) + MelLoss(16_000)(made, target)
        loss.backward()
        assert made.grad is not None
        assert torch.isfinite(loss) and torch.isfinite(made.grad).all()
        assert made.grad.abs().max() < 10
    assert level_loss(speech, speech) == 0
