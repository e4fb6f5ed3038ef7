"""Synthesized speech says that it is: a comment in the metadata of every file that is written.

It names the model, whose voice it was trained on, and IPTC's term for media that were made by a
trained model (https://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia). It is
easily taken out; it is for those who are honest. Nothing in it depends on the time, so that the
same seed gives the same bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from tts_assets import __version__

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def statement(model: str = "", whose: str = "") -> str:
    """That speech is synthetic, by which model (empty: it is not told, as in a blind test), after
    whose voice (empty: nobody's)."""
    by = f" by {model}" if model else ""
    whose = f", trained on the voice of {whose}" if whose else ""
    return f"Synthetic speech{by}{whose}. DigitalSourceType: {IPTC}. tts-assets {__version__}"


def write_speech(
    target: Path | BinaryIO,
    wave: NDArray[np.float32] | NDArray[np.int16],
    rate: int,
    comment: str,
    container: str = "WAV",
    subtype: str = "PCM_16",
) -> None:
    """Mono samples as an audio file that carries ``comment``, if there is one."""
    with soundfile.SoundFile(target, "w", rate, 1, subtype, format=container) as file:
        if comment:
            file.comment = comment
        file.write(wave)


def wav_comment(comment: str) -> bytes:
    """The chunk of a RIFF file that holds a comment."""
    text = comment.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    return struct.pack("<4sI4s4sI", b"LIST", 12 + len(text), b"INFO", b"ICMT", len(text)) + text
