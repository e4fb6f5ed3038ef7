"""DNSMOS: predicted mean opinion scores (MOS) of speech quality, 1 (bad) to 5 (excellent).

``p808`` predicts the overall rating of ITU-T P.808 listening tests. ``overall``, ``signal`` and
``background`` predict the ratings of ITU-T P.835. The package ``speechmos`` contains the ONNX
models, so nothing is downloaded. Source: Reddy et al., DNSMOS P.835 (ICASSP 2022).

The input is audio at 16 kHz in windows of 9.01 s with a hop of 1 s. A shorter clip is repeated
until it fills one window. The authors' program doubles a short clip instead and scores the same
sounds in up to nine windows. The scores differ by 0.01, and one window needs a ninth of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tts_assets.audio_models.pitch import load_librosa
from tts_assets.core.audio import Wave, resample

RATE = 16_000
SHORTEST_SECONDS = 0.1  # a score of a shorter clip, repeated to 9 s, means nothing
WINDOW_SECONDS = 9.01
WINDOW = 144_160  # samples
# Polynomials from the network's outputs to the listeners' scale, highest power first, as the
# authors' program has them.
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


def mono_clip(wave: Wave, rate: int) -> Wave | None:
    """A mono clip, float32 (samples,), resampled from ``rate`` Hz to 16 kHz; None below 0.1 s.

    Raises ValueError for a clip that is not mono.
    """
    if wave.ndim != 1:
        raise ValueError(f"expected a mono waveform, got shape {wave.shape}")
    audio = wave if rate == RATE or not len(wave) else resample(wave, rate, RATE)
    return None if len(audio) < SHORTEST_SECONDS * RATE else audio


class DnsmosScorer:
    """Scores one clip at a time with both DNSMOS models, which are loaded on first use.

    ``threads``: CPU threads of a model. More threads change the scores by rounding only.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def __call__(self, wave: Wave, rate: int) -> Mos | None:
        """Scores of a mono clip, float32 (samples,), at ``rate`` Hz; None below 0.1 s.

        Raises ValueError for a clip that is not mono.
        """
        audio = self.prepare(wave, rate)
        if audio is None:
            return None
        signal, background, overall = self.p835(audio)
        return Mos(self.p808(audio), overall, signal, background)

    def prepare(self, wave: Wave, rate: int) -> Wave | None:
        """The input of both models: 16 kHz, at least 9.01 s, in [-1, 1]; None below 0.1 s.

        Raises ValueError for a clip that is not mono.
        """
        audio = mono_clip(wave, rate)
        if audio is None:
            return None
        audio = np.clip(audio, -1.0, 1.0).astype(np.float32, copy=False)
        return np.resize(audio, WINDOW) if len(audio) < WINDOW else audio

    def p835(self, audio: Wave) -> tuple[float, float, float]:
        """Signal, background and overall score, means over the windows of a prepared clip."""
        raw = [self._p835.run(None, {"input_1": part[None]})[0][0] for part in windows(audio)]
        columns = np.array(raw, dtype=np.float64).T
        signal, background, overall = (
            float(np.mean(np.polyval(to_listeners, column)))
            for to_listeners, column in zip((SIGNAL, BACKGROUND, OVERALL), columns, strict=True)
        )
        return signal, background, overall

    def p808(self, audio: Wave) -> float:
        """The P.808 score, the mean over the windows of a prepared clip."""
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
        # by default a session uses all cores and waits actively
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        path = Path(speechmos.__file__).parent / "dnsmos_models" / model
        return onnxruntime.InferenceSession(str(path), options)


def windows(audio: Wave) -> Iterator[Wave]:
    """Windows of 9.01 s of a clip that is at least that long, with a hop of 1 s.

    Floating point makes some windows of the authors' program one sample too short, and their
    program skips those. This function skips the same ones, so that scores are comparable with
    published scores.
    """
    for number in range(int(len(audio) // RATE - WINDOW_SECONDS) + 1):
        start = number * RATE
        if int((number + WINDOW_SECONDS) * RATE) - start >= WINDOW:
            yield audio[start:][:WINDOW]


def mel(window: Wave) -> NDArray[np.float32]:
    """Input features of the P.808 model: 120 mel bands in dB, scaled, float32 (frames, 120)."""
    librosa = load_librosa()
    power = librosa.feature.melspectrogram(
        y=window[:-160], sr=RATE, n_fft=321, hop_length=160, n_mels=120
    )
    return ((librosa.power_to_db(power, ref=np.max) + 40) / 40).T.astype(np.float32)
