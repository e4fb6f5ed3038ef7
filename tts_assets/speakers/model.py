"""The encoders: mels [batch, frames, bands] to unit vectors [batch, embedding].

Nothing depends on batch mates: the ResNet normalizes by groups, not by batches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tts_assets.speakers.config import AudioSettings, EncoderArchitecture

BLOCKS = (3, 4, 6, 3)  # of ResNet34
GROUPS = 4


class LstmEncoder(nn.Module):
    """The last state of an LSTM through a linear layer (Wan et al., 2018). Its weights have the
    names of the public checkpoints."""

    def __init__(self, architecture: EncoderArchitecture, mels: int) -> None:
        super().__init__()
        hidden, self.relu = architecture.hidden, architecture.relu
        self.lstm = nn.LSTM(mels, hidden, architecture.layers, batch_first=True)
        self.linear = nn.Linear(hidden, architecture.embedding)

    def forward(self, mels: Tensor) -> Tensor:
        _, (states, _) = self.lstm(mels)
        raw = self.linear(states[-1])
        return F.normalize(raw.relu() if self.relu else raw, dim=-1)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, outputs) for _ in range(2))
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.skip(x))


class ResNetEncoder(nn.Module):
    """ResNet34 over time and frequency, its output's mean and deviation over time through a
    linear layer."""

    def __init__(self, architecture: EncoderArchitecture, mels: int) -> None:
        super().__init__()
        width, self.relu = architecture.channels, architecture.relu
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, width)
        layers: list[nn.Module] = []
        inputs, bands = width, mels
        for stage, blocks in enumerate(BLOCKS):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                bands = -(-bands // stride)
                layers.append(ResidualBlock(inputs, width << stage, stride))
                inputs = width << stage
        self.blocks = nn.Sequential(*layers)
        self.linear = nn.Linear(2 * inputs * bands, architecture.embedding)

    def forward(self, mels: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(mels.transpose(1, 2)[:, None])))
        x = self.blocks(x).flatten(1, 2)  # [batch, channels x bands, frames]
        deviation = x.var(dim=-1, correction=0).clamp_min(1e-8).sqrt()
        raw = self.linear(torch.cat([x.mean(dim=-1), deviation], dim=-1))
        return F.normalize(raw.relu() if self.relu else raw, dim=-1)


def build(architecture: EncoderArchitecture, audio: AudioSettings, seed: int = 0) -> nn.Module:
    """An encoder with random weights that follow from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = LstmEncoder if architecture.kind == "lstm" else ResNetEncoder
        return kind(architecture, audio.mels)
