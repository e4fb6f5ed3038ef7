"""How clean a recording is: DNSMOS ``ovr``, 1 (bad) to 5 (excellent), as a column of the samples.

The model (P.835, Reddy et al., ICASSP 2022) is in the package ``speechmos``. It hears 16 kHz in
windows of 9.01 s, one a second; a shorter clip is repeated until it fills one. (Its authors double
it, and hear the same sounds in up to nine windows: 0.01 of difference for a ninth of the time.)
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tts_assets.corpora.audio import Wave, read_wave

RATE = 16_000
WINDOW = 144_160  # samples
# The authors' map from the network's output to their listeners' scale, highest power first.
TO_LISTENERS = (-0.06766283, 1.11546468, 0.04602535)
THREADS = 2


class Dnsmos:
    """Overall quality of a mono clip at 16 kHz. Imports onnxruntime when it is made."""

    def __init__(self) -> None:
        import onnxruntime
        import speechmos

        model = Path(speechmos.__file__).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # clips are scored side by side
        self._session = onnxruntime.InferenceSession(str(model), options)

    def __call__(self, wave: Wave) -> float:
        """The mean over all windows of ``wave``, shape (samples,), not empty."""
        if len(wave) < WINDOW:
            wave = np.resize(wave, WINDOW)
        windows = int(len(wave) // RATE - WINDOW / RATE) + 1  # as the authors count them
        raw = [self._window(wave[i * RATE :][:WINDOW]) for i in range(max(1, windows))]
        return float(np.mean(np.polyval(TO_LISTENERS, raw)))

    def _window(self, wave: Wave) -> float:
        loud = np.clip(wave, -1.0, 1.0)[None]
        (scores,) = self._session.run(None, {"input_1": loud})
        return float(scores[0, 2])  # signal, background, overall


def measure_dnsmos(files: Iterable[Path]) -> list[float]:
    """DNSMOS ovr of each file, in their order, to two decimals."""
    dnsmos = Dnsmos()
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda file: round(dnsmos(read_wave(file, RATE)), 2), files))
