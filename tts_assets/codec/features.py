"""The log-mel filterbank that feeds the encoder, in torch.

It is Kaldi's, as ``SeamlessM4TFeatureExtractor`` computes it (the largest difference between the
two on speech is 1e-4), but batched and on any device: the extractors that
transformers ships for these codecs import torchaudio or run one clip at a time in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import SeamlessM4TFeatureExtractor

SAMPLE_RATE = 16_000
HOP = 320  # samples of one code: two filterbank frames of 10 ms
FRAME, SHIFT, FFT = 400, 160, 512
PREEMPHASIS = 0.97
FLOOR = 1.192092955078125e-07  # Kaldi's epsilon
DIMENSION = 160  # 80 mel bands x two frames


class LogFilterbank(nn.Module):
    """Waveforms (batch, samples) at 16 kHz to features (batch, samples / 320, 160).

    ``per_clip`` normalizes every mel band to zero mean and unit variance over the clip, as the
    published codecs expect. Ours are trained without it: then a frame's features, and so its
    code, depend on what lies around the frame and not on the whole clip. ``centred`` pads half a
    hop at both ends, which makes the frames as many as the hops (NeuCodec does without, and has
    one less).
    """

    mel: Tensor
    window: Tensor

    def __init__(self, per_clip: bool = False, centred: bool = True) -> None:
        super().__init__()
        self.per_clip, self.centred = per_clip, centred
        source = SeamlessM4TFeatureExtractor()
        mel = torch.tensor(source.mel_filters, dtype=torch.float32)
        window = torch.tensor(source.window, dtype=torch.float32)
        self.register_buffer("mel", mel, persistent=False)
        self.register_buffer("window", window, persistent=False)

    @torch.no_grad()
    def forward(self, waves: Tensor, frames: Sequence[int] = ()) -> Tensor:
        """``waves``: float32 in [-1, 1], a multiple of 320 samples. ``frames``: in a padded batch,
        how many features belong to each clip; what follows them is of no clip."""
        padding = (HOP // 2, HOP // 2) if self.centred else (0, 0)
        parts = F.pad(waves * 2**15, padding).unfold(-1, FRAME, SHIFT)
        parts = parts - parts.mean(-1, keepdim=True)
        before = torch.cat([parts[..., :1], parts[..., :-1]], dim=-1)
        parts = (parts - PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(parts, FFT).abs().square()
        bands = (power @ self.mel).clamp_min(FLOOR).log()
        width = bands.shape[1] // 2
        if self.per_clip:
            lengths = frames or [width] * len(waves)
            clips = [clip[: 2 * length] for clip, length in zip(bands, lengths, strict=True)]
            bands = pad_sequence([standardized(clip) for clip in clips], batch_first=True)
        return bands[:, : 2 * width].reshape(len(waves), width, DIMENSION)


def standardized(bands: Tensor) -> Tensor:
    """(time, bands) with zero mean and unit variance in every band."""
    return (bands - bands.mean(dim=0)) / (bands.var(dim=0) + 1e-7).sqrt()
