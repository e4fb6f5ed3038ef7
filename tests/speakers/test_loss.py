"""GE2E without loops is GE2E with them; its scale stays positive; an adversary pushes."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from tests.support.literal_ge2e import literal_ge2e
from tts_assets.speakers.model import LEAST_SCALE, Adversary, Ge2eLoss


@pytest.mark.parametrize("kind", ["softmax", "contrast"])
def test_loss_and_gradients_are_those_of_the_loops(kind: Literal["softmax", "contrast"]) -> None:
    torch.manual_seed(0)
    raw = torch.randn(5, 4, 8, dtype=torch.float64)
    loss = Ge2eLoss(kind).double()
    found = []
    for way in (loss, lambda e: literal_ge2e(e, loss.scale, loss.offset, kind)):
        x = raw.clone().requires_grad_()
        value = way(F.normalize(x, dim=-1))
        gradients = torch.autograd.grad(value, [x, loss.scale, loss.offset])
        found.append([value, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_two_utterances_of_two_speakers_are_enough() -> None:
    embeddings = F.normalize(torch.randn(2, 2, 4), dim=-1)
    assert torch.isfinite(Ge2eLoss("contrast")(embeddings))


def test_the_scale_stays_positive_and_can_rise_again() -> None:
    loss = Ge2eLoss()
    with torch.no_grad():
        loss.scale.fill_(-3.0)
    loss.keep_positive()
    assert float(loss.scale.detach()) == pytest.approx(LEAST_SCALE)
    torch.manual_seed(0)
    voices = F.normalize(torch.randn(3, 1, 8), dim=-1).expand(3, 2, 8)
    loss(voices).backward()
    assert loss.scale.grad is not None and float(loss.scale.grad) < 0


def test_an_adversary_reverses_the_gradient_of_its_classifier() -> None:
    torch.manual_seed(0)
    adversary, classes = Adversary(8, 16, 2, weight=0.5), torch.arange(6) % 2
    voices = torch.randn(6, 8, requires_grad=True)
    (reversed_,) = torch.autograd.grad(adversary(voices, classes), voices)
    plain = F.cross_entropy(adversary.layers(voices), classes)
    learns, (towards,) = plain.item(), torch.autograd.grad(plain, voices)
    torch.testing.assert_close(reversed_, -0.5 * towards)
    assert adversary(voices, classes).item() == pytest.approx(learns)
