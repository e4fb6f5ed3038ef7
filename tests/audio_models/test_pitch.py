"""The pitch tracker, and its first call in several processes at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tts_assets.audio_models.pitch import track_pitch

PROGRAM = """
import numpy as np
from tts_assets.audio_models.pitch import track_pitch
tone = np.sin(2 * np.pi * 150 * np.arange(8_000) / 8_000).astype(np.float32)
print(np.nanmedian(track_pitch(tone, low=60, high=500, rate=8_000)[0]))
"""


MEL_PROGRAM = """
import os
from pathlib import Path
import numpy as np
from tts_assets.audio_models.dnsmos import mel
from tts_assets.audio_models.pitch import load_librosa
cache = Path(os.environ["NUMBA_CACHE_DIR"])
compiled = lambda: {path.name for path in cache.rglob("*.nbi")}
load_librosa().filters.mel(sr=16_000, n_fft=400)
before = compiled()
mel(np.full(144_160, 0.01, np.float32))
assert before == compiled(), "functions are compiled outside of the lock"
print(*before)
"""


def test_the_pitch_of_a_tone() -> None:
    tone = np.sin(2 * np.pi * 150 * np.arange(8_000) / 8_000).astype(np.float32)
    frequencies, voiced = track_pitch(tone, low=60, high=500, rate=8_000)
    assert voiced.mean() > 0.5
    assert np.nanmedian(frequencies) == pytest.approx(150, abs=2)


@pytest.mark.slow
def test_processes_that_compile_at_once_leave_a_cache_that_loads(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    first = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=300) for process in first] == [0, 0]
    assert list(tmp_path.rglob("*pi_wrapper*.nbc"))
    subprocess.run(command, env=environment, check=True, timeout=300)


@pytest.mark.slow
def test_mel_filters_do_not_compile_the_pitch_tracker(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", MEL_PROGRAM]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "_pi_wrapper" in done.stdout  # compiled when librosa is imported
    assert "_viterbi" not in done.stdout
