"""How natural speech sounds: DNSMOS, Microsoft's predictor of listeners' opinions (1 to 5).

``p808`` predicts the overall rating of ITU-T P.808 listening tests; ``overall``, ``signal`` and
``background`` those of P.835. The models lie in the package ``speechmos``; nothing is downloaded.
Source: Reddy et al., DNSMOS P.835 (ICASSP 2022).

The models hear 16 kHz in windows of 9.01 s, one a second; a shorter clip is repeated until it
fills one. (Their authors double it, and hear the same sounds in up to nine windows: 0.01 of
difference for a ninth of the time.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tts_assets.core.audio import Wave, resample

RATE = 16_000
SHORTEST_SECONDS = 0.1  # below, the score of a clip repeated to 9 s says nothing about it
WINDOW_SECONDS = 9.01
WINDOW = 144_160  # samples
# The authors' maps from the network's outputs to their listeners' scale, highest power first.
SIGNAL = (-0.08397278, 1.22083953, 0.0052439)
BACKGROUND = (-0.13166888, 1.60915514, -0.39604546)
OVERALL = (-0.06766283, 1.11546468, 0.04602535)


@dataclass(frozen=True)
class Mos:
    """Predicted mean opinion scores, each 1 (bad) to 5 (excellent)."""

    p808: float
    overall: float
    signal: float
    background: float


class DnsmosScorer:
    """DNSMOS of one clip at a time; ``threads`` CPU threads (more change no digit that counts)."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def __call__(self, wave: Wave, rate: int) -> Mos | None:
        """Score a mono clip, shape (samples,), any rate; None if it is shorter than 0.1 s."""
        audio = self.heard(wave, rate)
        if audio is None:
            return None
        signal, background, overall = self.p835(audio)
        return Mos(self.p808(audio), overall, signal, background)

    def heard(self, wave: Wave, rate: int) -> Wave | None:
        """A clip as the models hear it, at 16 kHz; None if it is shorter than 0.1 s."""
        if wave.ndim != 1:
            raise ValueError(f"expected a mono waveform, got shape {wave.shape}")
        audio = wave if rate == RATE or not len(wave) else resample(wave, rate, RATE)
        if len(audio) < SHORTEST_SECONDS * RATE:
            return None
        audio = np.clip(audio, -1.0, 1.0).astype(np.float32, copy=False)
        return np.resize(audio, WINDOW) if len(audio) < WINDOW else audio

    def p835(self, audio: Wave) -> tuple[float, float, float]:
        """Signal, background, overall of what :meth:`heard` returned: means over its windows."""
        raw = [self._p835.run(None, {"input_1": part[None]})[0][0] for part in windows(audio)]
        columns = np.array(raw, dtype=np.float64).T
        signal, background, overall = (
            float(np.mean(np.polyval(to_listeners, column)))
            for to_listeners, column in zip((SIGNAL, BACKGROUND, OVERALL), columns, strict=True)
        )
        return signal, background, overall

    def p808(self, audio: Wave) -> float:
        """P.808 of what :meth:`heard` returned: the mean over its windows."""
        raw = [self._p808.run(None, {"input_1": mel(part)[None]})[0] for part in windows(audio)]
        return float(np.mean(raw))

    @cached_property
    def _p835(self) -> Any:
        return self._session("sig_bak_ovr.onnx")

    @cached_property
    def _p808(self) -> Any:
        return self._session("model_v8.onnx")

    def _session(self, model: str) -> Any:
        import onnxruntime
        import speechmos

        options = onnxruntime.SessionOptions()
        # left alone, a session takes every core and spins on them
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        path = Path(speechmos.__file__).parent / "dnsmos_models" / model
        return onnxruntime.InferenceSession(str(path), options)


def windows(audio: Wave) -> Iterator[Wave]:
    """The windows of 9.01 s of a clip at least that long, one a second.

    Those that the authors' own arithmetic in floating point makes a sample too short are left
    out, as their program does: the figures are comparable with published ones.
    """
    for number in range(int(len(audio) // RATE - WINDOW_SECONDS) + 1):
        start = number * RATE
        if int((number + WINDOW_SECONDS) * RATE) - start >= WINDOW:
            yield audio[start:][:WINDOW]


def mel(window: Wave) -> NDArray[np.float32]:
    """The P.808 model's features: decibels of 120 mel bands, shape (frames, 120)."""
    import librosa

    power = librosa.feature.melspectrogram(
        y=window[:-160], sr=RATE, n_fft=321, hop_length=160, n_mels=120
    )
    return ((librosa.power_to_db(power, ref=np.max) + 40) / 40).T.astype(np.float32)
