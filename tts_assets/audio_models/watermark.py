"""An inaudible watermark that says "this speech is synthetic", and its detection: Perth.

The networks and weights are those of ``resemble-perth`` (MIT, Resemble AI, perth_net_implicit). The
package is not imported, because it needs torchaudio; its weights are read with
``weights_only=True``. The mark is one bit and names no model. It changes the levels of the lowest
128 bins (0 to 2 kHz) of a spectrogram with windows of 64 ms and a hop of 10 ms by amounts that a
convolutional network computes from 310 ms around each frame.

Here only the difference is synthesized and added to the samples, at any sample rate: audio above
2 kHz is not touched, and nothing is resampled. :class:`Watermarker` marks a stream chunk by chunk
without delay. The network sees the past of a chunk and no future, and the difference fades to zero
at the ends of a chunk: 64 ms around a cut carry a weaker mark. The same chunks give the same
samples on every device, because the network runs on the CPU.

:func:`detect` gives the probability that the detector assigns to a clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tts_assets.core.audio import Wave, resample

PACKAGE = "resemble-perth==1.0.1"
WEIGHTS = "perth_net/pretrained/implicit/perth_net_250000.pth.tar"
RATE, WINDOW, HOP = 32_000, 2048, 320  # Hz and samples of the networks' spectrograms
HOP_SECONDS, WINDOW_SECONDS = HOP / RATE, WINDOW / RATE
BINS, HIDDEN = 128, 256
FLOOR_DB, HEADROOM_DB = -180.0, 15.0  # levels are scaled from [FLOOR_DB, HEADROOM_DB] to [0, 1]
AUDIBLE = 0.05  # frames whose levels sum to less than that part of the loudest frame's are skipped
CONTEXT = 15  # frames on either side that the network sees: five convolutions of width 7
BLOCK = 1_000  # frames whose samples are in memory at once: 10 s
PRESENT = 0.5  # score above which a clip counts as marked
SHORTEST_SECONDS = 0.2  # of a clip with a score


class Layer(nn.Module):
    """A convolution over frames, followed by a leaky rectifier unless it is the last one."""

    def __init__(self, inputs: int, outputs: int, width: int, last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, width, padding=width // 2)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, frames) to (batch, outputs, frames)."""
        y = self.conv(x)
        return y if self.last else F.leaky_relu(y)


def layers(outputs: int) -> nn.Sequential:
    """The network of the encoder and of each branch of the detector."""
    middle = [Layer(HIDDEN, HIDDEN, 7) for _ in range(5)]
    return nn.Sequential(Layer(BINS, HIDDEN, 1), *middle, Layer(HIDDEN, outputs, 1, last=True))


class Networks(nn.Module):
    """Encoder and detector, under the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": layers(BINS)})
        branches = {f"{speed}_layers": layers(2) for speed in SPEEDS}
        self.decoder = nn.ModuleDict(branches)


SPEEDS: Mapping[str, float] = {"slow": 1.25, "normal": 1.0, "fast": 0.75}  # stretch of the frames


class WatermarkUnavailable(RuntimeError):
    """The weights are not installed."""


@lru_cache(maxsize=1)
def networks() -> Networks:
    """The networks with the published weights. Raises :class:`WatermarkUnavailable`."""
    spec = find_spec("perth")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    if not (folder / WEIGHTS).is_file():
        raise WatermarkUnavailable(
            f"the watermark needs the weights of {PACKAGE}: run `make install`, or "
            f"`pip install --no-deps {PACKAGE}`, or set [serving] watermark = false"
        )
    state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)["model"]
    own = Networks()
    own.load_state_dict({name: state[name] for name in own.state_dict()})
    return own.eval().requires_grad_(False)


@lru_cache(maxsize=8)
def bases(rate: int) -> tuple[Tensor, Tensor, int]:
    """Window (samples,) and Fourier basis (samples, 2 * BINS) of one frame at ``rate`` Hz.

    The columns are the cosines, then the negative sines, of the bins' frequencies; the time is 0
    in the middle of the window. The last value is half the length of the window in samples.
    """
    half = round(WINDOW_SECONDS * rate / 2)
    time = torch.arange(-half, half, dtype=torch.float64) / rate
    window = torch.cos(torch.pi * time / (2 * half / rate)) ** 2
    angle = 2 * torch.pi * time[:, None] * (torch.arange(BINS) * RATE / WINDOW)
    basis = torch.cat([torch.cos(angle), -torch.sin(angle)], dim=1)
    return window.float(), basis.float(), half


class Watermarker:
    """Adds the watermark to one stream of mono audio at ``rate`` Hz.

    A whole clip is one chunk. Each call needs about 1 % of the duration of its audio on a CPU core.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.encoder = networks().encoder["layers"]
        self.past = torch.zeros(0)  # samples before the next chunk that the network sees

    def push(self, wave: Wave) -> Wave:
        """The next chunk with the mark; ``wave`` and the result are float32 (samples,)."""
        if not len(wave):
            return wave
        with torch.inference_mode():
            chunk = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
            known = torch.cat([self.past, chunk])
            marked = chunk + self._difference(known, len(self.past))
            keep = round((CONTEXT * HOP_SECONDS + WINDOW_SECONDS) * self.rate)
            self.past = known[-keep:].clone()
            result: NDArray[np.float32] = marked.numpy()
        return result

    def _difference(self, known: Tensor, first: int) -> Tensor:
        """What is added to the samples from index ``first`` of ``known`` (samples,) on."""
        window, basis, half = bases(self.rate)
        fresh = len(known) - first
        centers = frame_centers(len(known), half, self.rate)
        if not len(centers):
            return torch.zeros(fresh)
        around = torch.arange(-half, half)
        parts = [(known[some[:, None] + around] * window) @ basis for some in centers.split(BLOCK)]
        spectra = torch.cat(parts) * (WINDOW / (2 * half))
        real, imaginary = spectra[:, :BINS], spectra[:, BINS:]
        levels = scaled_levels(torch.hypot(real, imaginary))
        total = levels.sum(dim=1)
        change = self.encoder(levels.T[None])[0].T * (total > AUDIBLE * total.max())[:, None]
        gain = 10 ** (change * (HEADROOM_DB - FLOOR_DB) / 20) - 1
        weight = torch.full((BINS,), 2.0)
        weight[0] = 1.0
        added = torch.cat([real * gain * weight, imaginary * gain * weight], dim=1)
        total = torch.zeros(fresh)
        for some, starts in zip(
            added.split(BLOCK), (centers - half - first).split(BLOCK), strict=True
        ):
            overlap_add(total, (some @ basis.T) * window / WINDOW, starts)
        return total / (window**2).sum() * (HOP / WINDOW * 2 * half)  # that of a full overlap


def frame_centers(samples: int, half: int, rate: int) -> Tensor:
    """The centres of all frames that lie within ``samples``, (frames,)."""
    count = int((samples - 2 * half) / (HOP_SECONDS * rate)) + 1 if samples >= 2 * half else 0
    return half + torch.round(torch.arange(count) * HOP_SECONDS * rate).long()


def scaled_levels(magnitudes: Tensor) -> Tensor:
    """Magnitudes of spectra as the networks' inputs: levels in dB, 0 at -180 and 1 at 15 dB."""
    decibel = 20 * torch.log10(magnitudes.clip(min=10 ** (FLOOR_DB / 20)))
    return (decibel - FLOOR_DB) / (HEADROOM_DB - FLOOR_DB)


def overlap_add(total: Tensor, frames: Tensor, starts: Tensor) -> None:
    """Add ``frames`` (frames, width) to ``total`` (samples,) at ``starts``.

    Frames that begin before sample 0 are omitted: their samples have been returned before.
    """
    frames, starts = frames[starts >= 0], starts[starts >= 0]
    index = (starts[:, None] + torch.arange(frames.shape[1])).reshape(-1)
    total.index_add_(0, index, frames.reshape(-1))


def mark(wave: Wave, rate: int) -> Wave:
    """A whole clip, float32 (samples,) at ``rate`` Hz, with the watermark."""
    return Watermarker(rate).push(wave)


def detect(wave: Wave, rate: int) -> float | None:
    """The detector's score of a mono clip, 0 (not marked) to 1 (marked).

    ``wave``: float32 (samples,) at ``rate`` Hz. None below 0.2 s and for digital silence.
    """
    audio = wave if rate == RATE or not len(wave) else resample(wave, rate, RATE)
    if len(audio) < SHORTEST_SECONDS * RATE or not np.any(audio):
        return None
    with torch.inference_mode():
        window = torch.hann_window(WINDOW)
        signal = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))
        spectrum = torch.stft(signal, WINDOW, HOP, window=window, return_complex=True)
        levels = scaled_levels(spectrum.abs())[None]
        total = levels.sum(dim=1)
        audible = (total > AUDIBLE * total.max()).float()[:, None]
        found = [
            _branch(levels[:, :BINS], audible, f"{name}_layers", stretch)
            for name, stretch in SPEEDS.items()
        ]
        weights, marks = torch.stack(found).T
        return float((weights.softmax(0) * marks).sum().clip(0, 1))


def _branch(levels: Tensor, audible: Tensor, name: str, stretch: float) -> Tensor:
    """Attention and mark of one branch of the detector, (2,): means over the audible frames."""
    size = int(levels.shape[2] * stretch)
    stretched = F.interpolate(levels, size=size, mode="linear", align_corners=True)
    output = networks().decoder[name](stretched)
    mask = F.interpolate(audible, size=size, mode="nearest")
    return ((output * mask).sum(dim=2) / mask.sum(dim=2))[0]
