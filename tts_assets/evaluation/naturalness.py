"""How natural speech sounds: DNSMOS, Microsoft's predictor of listeners' opinions (1 to 5).

``p808`` predicts the overall rating of ITU-T P.808 listening tests; ``overall``, ``signal`` and
``background`` those of P.835. The models lie in the package ``speechmos``; nothing is downloaded.
Source: Reddy et al., DNSMOS P.835 (ICASSP 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import speechmos
from numpy.typing import NDArray
from speechmos.dnsmos import DNSMOS

from tts_assets.evaluation.transcription import WHISPER_RATE, at_whisper_rate

SHORTEST_SECONDS = 0.1  # below, the score of a clip repeated to 9 s says nothing about it
WINDOW = 144_160  # samples of the 9.01 s that the models read


@dataclass(frozen=True)
class Mos:
    """Predicted mean opinion scores, each 1 (bad) to 5 (excellent)."""

    p808: float
    overall: float
    signal: float
    background: float


class NaturalnessScorer:
    """DNSMOS of one clip at a time; ``threads`` CPU threads (more change no digit that counts)."""

    def __init__(self, threads: int = 1) -> None:
        models = Path(speechmos.__file__).parent / "dnsmos_models"
        primary, p808 = str(models / "sig_bak_ovr.onnx"), str(models / "model_v8.onnx")
        self.dnsmos = DNSMOS(primary, p808)
        # its own sessions take every core and spin on them
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.dnsmos.onnx_sess = onnxruntime.InferenceSession(primary, options)
        self.dnsmos.p808_onnx_sess = onnxruntime.InferenceSession(p808, options)

    def __call__(self, wave: NDArray[np.float32], rate: int) -> Mos | None:
        """Score a mono clip, shape (samples,), any rate; None if it is shorter than 0.1 s."""
        audio = np.clip(at_whisper_rate(wave, rate), -1.0, 1.0)
        if len(audio) < SHORTEST_SECONDS * WHISPER_RATE:
            return None
        # speechmos doubles a short clip until it is long enough, and scores up to nine windows of
        # the same sounds; one window of the clip repeated takes a ninth of the time
        if len(audio) < WINDOW:
            audio = np.resize(audio, WINDOW)
        scores = self.dnsmos(audio, WHISPER_RATE, False)
        return Mos(
            p808=float(scores["p808_mos"]),
            overall=float(scores["ovrl_mos"]),
            signal=float(scores["sig_mos"]),
            background=float(scores["bak_mos"]),
        )
