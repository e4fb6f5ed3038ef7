"""A clip as a small picture: time to the right, pitch upwards, loudness as ink."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tts_assets.audio import Wave, resample
from tts_assets.evaluation.clips import data_uri

RATE = 16_000
WINDOW, BANDS = 512, 64
COLUMNS = 240  # of the picture, whatever the clip's length
RANGE_DB = 60.0  # from the loudest down to white
LEVELS = 16  # of ink: 4 bits a pixel, 4 to 6 kB a picture


def spectrogram(wave: Wave, rate: int) -> str:
    """A PNG in a data URI, 240 x 64 pixels: mel bands from 0 to 8 kHz, ink on transparency.

    The clip must hold samples.
    """
    power = mel_power(resample(wave, rate, RATE) if rate != RATE else wave)
    decibels = 10 * np.log10(power + 1e-10)
    ink = np.clip((decibels - decibels.max()) / RANGE_DB + 1, 0, 1)
    pixels = np.round(ink[:, ::-1].T * (LEVELS - 1)).astype(np.uint8)
    image = Image.fromarray(pixels, mode="P")
    image.putpalette([0] * 3 * LEVELS)
    opacity = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=opacity, bits=4, optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def mel_power(wave: Wave) -> NDArray[np.float64]:
    """Power of 64 mel bands at 240 places of a clip at 16 kHz, (240, 64)."""
    from librosa.filters import mel

    padded = np.pad(wave.astype(np.float64), WINDOW // 2)
    starts = np.linspace(0, max(0, len(padded) - WINDOW), COLUMNS).round().astype(int)
    frames = np.stack([padded[start : start + WINDOW] for start in starts])
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    return spectrum @ mel(sr=RATE, n_fft=WINDOW, n_mels=BANDS).T.astype(np.float64)
