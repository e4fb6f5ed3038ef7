"""Pace: how long it took, against a person, and words a second of speech.

Pitch: the fundamental frequency by probabilistic YIN, as librosa has it.

Source: Mauch and Dixon, pYIN (ICASSP 2014). At 8 kHz, in frames of 64 ms every 20 ms and steps of
a quarter of a semitone: 0.02 s for a second of speech, and the medians of 16 kHz to 2 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tts_assets.core.audio import Wave, read_clip, resample
from tts_assets.corpora.text import normalize
from tts_assets.evaluation.metrics.metric import Column, Metric, Unmeasured, Utterance, Values

FRAME_SECONDS = 0.02
SILENT_DB = 30.0  # below the loud frames
LOUD_PERCENTILE = 95.0
SHORTEST_SECONDS = 0.1


class Pace(Metric):
    """The length to expect is that of the text's own recording; else it follows, by characters,
    from the voice prompt; else from the recordings of ``[evaluation] target``, or of the recipe's
    corpora."""

    name, version = "pace", "1"
    columns = (
        Column("seconds", "Length", "From the first sample to the last.", unit="s", digits=1),
        Column(
            "speaking_rate",
            "Speaking rate",
            "Words of the text a second, silence at both ends left out.",
            unit="words/s",
            digits=1,
            shown=True,
        ),
        Column(
            "duration_ratio",
            "Length ratio",
            "Length over that of the text's own recording, or over the length that the speaker's "
            "pace lets expect; silence at both ends left out. 1 is as long as expected.",
            shown=True,
        ),
    )

    def key(self, utterance: Utterance) -> None:
        return None

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._one(utterance) for utterance in utterances]

    def _one(self, utterance: Utterance) -> Values | Unmeasured:
        spoken = speech_seconds(utterance.wave, utterance.rate)
        if spoken < SHORTEST_SECONDS:
            return Unmeasured(f"less than {SHORTEST_SECONDS:g} s above silence")
        values = {
            "seconds": utterance.seconds,
            "speaking_rate": utterance.match.words / spoken,
        }
        expected = self.expected(utterance)
        return values | ({"duration_ratio": spoken / expected} if expected else {})

    def expected(self, utterance: Utterance) -> float:
        """Seconds of speech; 0 where nothing lets expect any."""
        text = utterance.text
        if text.reference_wav:
            return seconds_of(text.reference_wav)
        rate = self.setting.characters_per_second
        if text.prompt_wav:
            said = spoken_characters(text.prompt_text, text.language)
            rate = said / max(seconds_of(text.prompt_wav), SHORTEST_SECONDS)
        return spoken_characters(text.text, text.language) / rate if rate else 0.0


def spoken_characters(text: str, language: str) -> int:
    """Letters of a text as it is spoken: figures count as their words."""
    return sum(character.isalnum() for character in normalize(text, language))


@cache
def seconds_of(path: Path) -> float:
    clip = read_clip(path)
    return speech_seconds(clip.wave, clip.rate)


def speech_seconds(wave: Wave, rate: int) -> float:
    """From the first frame within 30 dB of the loud ones to the last; 0 of silence."""
    size = round(FRAME_SECONDS * rate)
    frames = wave[: len(wave) // size * size].reshape(-1, size).astype(np.float64)
    if not len(frames):
        return 0.0
    power = np.square(frames).mean(axis=1)
    floor = np.percentile(power, LOUD_PERCENTILE) * 10 ** (-SILENT_DB / 10)
    loud = np.flatnonzero(power > floor)
    return float((loud[-1] - loud[0] + 1) * FRAME_SECONDS) if len(loud) else 0.0


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
