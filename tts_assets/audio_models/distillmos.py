"""DistillMOS: a predicted mean opinion score (MOS) of speech quality, 1 (bad) to 5 (excellent).

The network and its weights are those of ``distillmos`` (MIT, Microsoft), a small network that was
distilled from the self-supervised model XLS-R. The package is not imported, because it needs
torchaudio; its weights are read with ``weights_only=True``. Source: Stahl and Gamper, Distillation
and Pruning for Scalable Self-Supervised Representation-Based Speech Quality Assessment (ICASSP
2025).

The input is audio at 16 kHz in windows of 7.68 s with a hop of at most 1 s, each scaled to a peak
of 1; a shorter clip is padded with zeros. The score is the mean over the windows.
"""

from __future__ import annotations

import math
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tts_assets.audio_models.dnsmos import mono_clip
from tts_assets.core.audio import Wave

PACKAGE = "distillmos==0.9.1"
WEIGHTS = "weights/distill_mos_v7.pt"
WINDOW, HOP = 122_880, 16_000  # samples
FRAME, FRAME_HOP = 320, 160  # samples of the spectrogram
BATCH = 8  # windows that are scored at once
CHANNELS = (2, 64, 64, 128, 256, 256, 256)
FEATURES, WIDTH, POSITIONS = 1024, 200, 384  # of the transformer: inputs, size, frames


def weights_file() -> Path | None:
    """The weights in the installed package; None without it."""
    spec = find_spec("distillmos")
    path = Path(spec.origin).parent / WEIGHTS if spec and spec.origin else None
    return path if path and path.is_file() else None


class Network(nn.Module):
    """Windows (batch, 122880), scaled to a peak of 1, to scores from 0 to 1, (batch,)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(CHANNELS)):
            stride = (1 if number == 0 else 2, 2 if number == len(CHANNELS) - 2 else 1)
            conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=(0, 1))
            layers += [conv, nn.LeakyReLU(0.1)]
        self.cnn = nn.ModuleDict({"cnn": nn.Sequential(*layers)})
        self.transformer_pool_attn = Head()

    def forward(self, x: Tensor) -> Tensor:
        """Scores from 0 to 1, (batch,)."""
        features = self.cnn["cnn"](compressed_spectrum(x)).flatten(1, 2)
        scores: Tensor = self.transformer_pool_attn(features.transpose(1, 2))
        return scores


class Head(nn.Module):
    """A transformer over frames (batch, frames, FEATURES), and pooling by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_input = nn.BatchNorm1d(FEATURES)
        layer = nn.TransformerEncoderLayer(WIDTH, 8, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.transformer = nn.ModuleDict(
            {
                "norm": nn.BatchNorm1d(FEATURES),
                "position_encoding": Positions(),
                "linear_proj": nn.Linear(FEATURES, WIDTH),
                "transformer_encoder": nn.TransformerEncoder(layer, 7),
            }
        )
        self.norm_trans = nn.BatchNorm1d(WIDTH)
        parts = {"linear1": (WIDTH, 2 * WIDTH), "linear2": (2 * WIDTH, 1), "linear3": (WIDTH, 1)}
        self.pool = nn.ModuleDict({name: nn.Linear(*sizes) for name, sizes in parts.items()})

    def forward(self, x: Tensor) -> Tensor:
        """Scores from 0 to 1, (batch,)."""
        own = self.transformer
        x = own["norm"](self.norm_input(x.transpose(1, 2))).transpose(1, 2)
        x = own["transformer_encoder"](own["position_encoding"](own["linear_proj"](x)))
        x = self.norm_trans(x.transpose(1, 2)).transpose(1, 2)
        weights = self.pool["linear2"](F.relu(self.pool["linear1"](x))).softmax(dim=1)
        return torch.sigmoid(self.pool["linear3"]((weights * x).sum(dim=1)))[:, 0]


class Positions(nn.Module):
    """Adds the encoding of positions, which is stored with the weights."""

    pe: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pe", torch.zeros(1, POSITIONS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, POSITIONS, WIDTH) to the same shape."""
        return x + self.pe


def compressed_spectrum(x: Tensor) -> Tensor:
    """Spectra whose magnitudes are raised to the power 0.3: (batch, 2, bins, frames)."""
    padding = (FRAME - FRAME_HOP) // 2
    padded = F.pad(x, (padding, padding), mode="reflect")
    window = torch.hann_window(FRAME)
    spectrum = torch.stft(
        padded, FRAME, FRAME_HOP, window=window, center=False, return_complex=True
    )
    parts = torch.view_as_real(spectrum)
    magnitude = spectrum.abs()[..., None].clip(min=1e-12)
    return (magnitude**0.3 * parts / magnitude).permute(0, 3, 1, 2)


class DistillMosScorer:
    """Scores one clip at a time; the network is loaded on first use."""

    @cached_property
    def network(self) -> Network:
        """The network with the published weights. Raises FileNotFoundError without them."""
        if (path := weights_file()) is None:
            raise FileNotFoundError(f"the weights of {PACKAGE} are not installed")
        network = Network()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
        return network.eval().requires_grad_(False)

    def __call__(self, wave: Wave, rate: int) -> float | None:
        """The score of a mono clip, float32 (samples,), at ``rate`` Hz; None below 0.1 s.

        Raises ValueError for a clip that is not mono.
        """
        audio = mono_clip(wave, rate)
        if audio is None:
            return None
        with torch.inference_mode():
            parts = windows(torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)))
            scores = torch.cat([self.network(part) for part in parts.split(BATCH)])
        return float(1 + 4 * scores.mean())


def windows(audio: Tensor) -> Tensor:
    """The windows of a clip (samples,), evenly spaced, each with a peak of 1: (windows, WINDOW)."""
    audio = F.pad(audio, (0, max(0, WINDOW - len(audio))))
    over = len(audio) - WINDOW
    places = np.linspace(0, 1, math.ceil(over / HOP) + 1)
    parts = torch.stack([audio[int(place * over) :][:WINDOW] for place in places])
    return parts / (parts.abs().amax(dim=1, keepdim=True) + 1e-8)
