"""Fundamental frequency by probabilistic YIN (Mauch and Dixon, 2014), as librosa has it.

librosa compiles functions with numba, some when its modules are imported, and keeps the machine
code in numba's cache beside its own files. When two processes compile and store a function at the
same time, the cache can hold an entry whose code is missing. Every process that loads the entry
later crashes with a segmentation fault (seen with numba 0.65 and the two ranks of a first report
in a fresh environment). :func:`load_librosa` therefore holds a file lock while a process imports
and compiles: one process compiles, the others load.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

FIRST_CALL_SAMPLES = 2048  # of silence: enough for one frame


def track_pitch(
    wave: NDArray[np.float32], *, low: float, high: float, rate: int, **options: Any
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The pitch in Hz (NaN where unvoiced) and whether it is voiced, one value a frame.

    ``low`` and ``high`` are the range in Hz; ``options`` go to :func:`librosa.pyin`.
    """
    pyin = load_librosa().pyin
    frequencies, voiced, _ = pyin(wave, fmin=low, fmax=high, sr=rate, **options)
    return np.asarray(frequencies, dtype=np.float64), voiced


@cache
def load_librosa() -> ModuleType:
    """Import librosa and compile its pYIN while no other process does the same."""
    lock = Path(tempfile.gettempdir()) / f"tts-assets-numba-{os.getuid()}.lock"
    with FileLock(lock):
        import librosa

        librosa.pyin(np.zeros(FIRST_CALL_SAMPLES, np.float32), fmin=60.0, fmax=500.0, sr=8_000)
        return librosa
