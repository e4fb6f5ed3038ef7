"""Speech of espeak-ng for tests in languages of which no recordings are installed.

It runs in a process of its own: the library has one state for a process, and the phonemizer of the
project uses it, too.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

WORDS_A_MINUTE = 150


def write_speech(texts: Mapping[str, str], voice: str, folder: Path) -> None:
    """Write ``folder/<name>.wav`` of each text by its name."""
    request = json.dumps({"texts": dict(texts), "voice": voice, "folder": str(folder)})
    subprocess.run([sys.executable, __file__, request], check=True)


def main(request: str) -> None:
    """Synthesize all texts of a request of :func:`write_speech`."""
    import espeakng_loader

    asked = json.loads(request)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    chunks: list[np.ndarray] = []

    def receive(wave: object, count: int, _: object) -> int:
        if wave and count:
            chunks.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())  # type: ignore[arg-type]
        return 0

    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )
    callback = kind(receive)  # the library keeps a pointer to it
    data = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(1, 0, data, 0)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(asked["voice"].encode())
    library.espeak_SetParameter(1, WORDS_A_MINUTE, 0)
    for name, text in asked["texts"].items():
        chunks.clear()
        said = text.encode()
        library.espeak_Synth(said, ctypes.c_size_t(len(said) + 1), 0, 0, 0, 1, None, None)
        library.espeak_Synchronize()
        soundfile.write(Path(asked["folder"]) / f"{name}.wav", np.concatenate(chunks), rate)


if __name__ == "__main__":
    main(sys.argv[1])
