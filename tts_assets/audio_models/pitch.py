"""Fundamental frequency by probabilistic YIN (Mauch and Dixon, 2014), as librosa has it.

librosa compiles functions with numba, some when its modules are imported, and keeps the machine
code in numba's cache beside its own files. When two processes compile and store a function at the
same time, the cache can hold an entry whose code is missing. Every process that loads the entry
later crashes with a segmentation fault (seen with numba 0.65 and the two ranks of a first report
in a fresh environment). A process therefore holds a file lock while it imports librosa, and while
it compiles pYIN: one process compiles, the others load.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
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
    frequencies, voiced, _ = compiled_pyin()(wave, fmin=low, fmax=high, sr=rate, **options)
    return np.asarray(frequencies, dtype=np.float64), voiced


@cache
def load_librosa() -> ModuleType:
    """Import librosa while no other process imports or compiles it.

    librosa imports its modules when they are first used, and compiles functions then. Those that
    pitch, mel filters and spectrograms need are imported here, under the lock.
    """
    with lock():
        import librosa
        import librosa.core.audio
        import librosa.core.pitch
        import librosa.feature
        import librosa.filters

        return librosa


@cache
def compiled_pyin() -> Callable[..., Any]:
    """librosa's pYIN, compiled while no other process does the same; about 10 s the first time."""
    pyin: Callable[..., Any] = load_librosa().pyin
    with lock():
        pyin(np.zeros(FIRST_CALL_SAMPLES, np.float32), fmin=60.0, fmax=500.0, sr=8_000)
    return pyin


def lock() -> FileLock:
    """The lock of all processes of this user for numba's cache."""
    return FileLock(Path(tempfile.gettempdir()) / f"tts-assets-numba-{os.getuid()}.lock")
