"""Pitch: the fundamental frequency by probabilistic YIN, as librosa has it.

Source: Mauch and Dixon, pYIN (ICASSP 2014). At 8 kHz, in frames of 64 ms every 20 ms and steps of
a quarter of a semitone: 0.02 s for a second of speech, and the medians of 16 kHz to 2 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tts_assets.audio import resample
from tts_assets.evaluation.metrics.metric import Column, Metric, Unmeasured, Utterance, Values

RATE = 8_000
FRAME, HOP = 512, 160
LOWEST, HIGHEST = 60.0, 500.0  # Hz: a low man, an excited child
RESOLUTION = 0.25  # semitones
SHORTEST_VOICED = 0.1  # seconds: fewer frames make no statistics


class Pitch(Metric):
    name, version = "pitch", "1"
    columns = (
        Column(
            "f0_median", "Pitch", "Median pitch of voiced speech.", unit="Hz", digits=0, shown=True
        ),
        Column(
            "f0_spread",
            "Pitch range",
            "Standard deviation of the pitch: small is monotonous. People reading: 2 to 5.",
            unit="semitones",
            digits=1,
        ),
        Column("voiced", "Voiced", "Share of the frames that have a pitch.", unit="%", digits=0),
    )

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [pitch_of(utterance) for utterance in utterances]


def pitch_of(utterance: Utterance) -> Values | Unmeasured:
    import librosa

    short = Unmeasured(f"less than {SHORTEST_VOICED:g} s voiced")
    if utterance.seconds < SHORTEST_VOICED:
        return short
    wave = resample(utterance.wave, utterance.rate, RATE)
    f0, voiced, _ = librosa.pyin(
        wave,
        fmin=LOWEST,
        fmax=HIGHEST,
        sr=RATE,
        frame_length=FRAME,
        hop_length=HOP,
        resolution=RESOLUTION,
    )
    if voiced.sum() * HOP < SHORTEST_VOICED * RATE:
        return short
    heard = f0[voiced]
    return {
        "f0_median": float(np.median(heard)),
        "f0_spread": float(12 * np.std(np.log2(heard))),
        "voiced": float(voiced.mean()),
    }
