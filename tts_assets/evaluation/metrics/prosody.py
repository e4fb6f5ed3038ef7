"""Metrics of prosody: duration, speaking rate, and pitch.

Pitch is the fundamental frequency (F0) by probabilistic YIN as implemented in librosa. Source:
Mauch and Dixon, pYIN (ICASSP 2014). Its settings here are 8 kHz, frames of 64 ms, a hop of 20 ms
and a resolution of a quarter of a semitone. They need 0.02 s for a second of speech, and the
medians differ from those at 16 kHz by at most 2 %.

The smallest differences that matter: listeners notice 5 % of the speaking rate (Quené, On the just
noticeable difference for tempo in speech, J. Phonetics 35, 2007), and about one semitone of pitch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tts_assets.audio_models.pitch import track_pitch
from tts_assets.core.audio import Wave, read_clip, resample
from tts_assets.evaluation.metrics.metric import Column, Metric, Unmeasured, Utterance, Values
from tts_assets.normalization.front_end import normalize

FRAME_SECONDS = 0.02
SILENT_DB = 30.0  # a frame this far below the loud frames is silent
LOUD_PERCENTILE = 95.0
SHORTEST_SECONDS = 0.1


class Pace(Metric):
    """Duration, speaking rate, and the ratio of the duration to the expected one.

    The expected duration is that of the text's recording, if the suite has one. Otherwise it
    follows from the number of characters, at the pace of the voice prompt; without a prompt at the
    pace of the corpora of ``[evaluation] reference_corpora``, or of the recipe's corpora.
    """

    name, version = "pace", "3"
    columns = (
        Column("seconds", "Duration", "Duration of the file.", unit="s", digits=1),
        Column(
            "speaking_rate",
            "Speaking rate",
            "Words of the text per second, without silence at both ends.",
            unit="words/s",
            digits=1,
            shown=True,
            smallest=0.1,
        ),
        Column(
            "duration_ratio",
            "Duration ratio",
            "Duration divided by that of the text's recording, or by the duration that the "
            "reference speaker's pace predicts; without silence at both ends. 1 is as predicted.",
            shown=True,
            smallest=0.05,
        ),
    )

    def key(self, utterance: Utterance) -> None:
        return None

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._measure_one(utterance) for utterance in utterances]

    def _measure_one(self, utterance: Utterance) -> Values | Unmeasured:
        speech = speech_seconds(utterance.wave, utterance.rate)
        if speech < SHORTEST_SECONDS:
            return Unmeasured(f"less than {SHORTEST_SECONDS:g} s above silence")
        values = {
            "seconds": utterance.seconds,
            "speaking_rate": utterance.match.words / speech,
        }
        expected = self.expected(utterance)
        return values | ({"duration_ratio": speech / expected} if expected else {})

    def expected(self, utterance: Utterance) -> float:
        """The expected duration of the speech in seconds; 0 if it is unknown."""
        text = utterance.text
        if text.reference_wav:
            return seconds_of(text.reference_wav)
        rate = self.setting.characters_per_second
        if text.prompt_wav:
            characters = spoken_characters(text.prompt_text, text.language)
            rate = characters / max(seconds_of(text.prompt_wav), SHORTEST_SECONDS)
        return spoken_characters(text.text, text.language) / rate if rate else 0.0


def spoken_characters(text: str, language: str) -> int:
    """The letters of a text as it is read aloud: figures count as their words."""
    return sum(character.isalnum() for character in normalize(text, language))


@cache
def seconds_of(path: Path) -> float:
    """The duration of a file's speech in seconds; see :func:`speech_seconds`."""
    clip = read_clip(path)
    return speech_seconds(clip.wave, clip.rate)


def speech_seconds(wave: Wave, rate: int) -> float:
    """Seconds from the first to the last frame that is within 30 dB of the loud frames.

    ``wave``: (samples,) at ``rate`` Hz. The result is 0 for silence.
    """
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
LOWEST, HIGHEST = 60.0, 500.0  # Hz: from low male voices to high children's voices
RESOLUTION = 0.25  # semitones
SHORTEST_VOICED = 0.1  # seconds; fewer frames are not enough for statistics


class Pitch(Metric):
    """Median and standard deviation of the pitch, and the fraction of voiced frames."""

    name, version = "pitch", "1"
    columns = (
        Column(
            "f0_median",
            "Pitch",
            "Median fundamental frequency of voiced frames.",
            unit="Hz",
            digits=0,
            shown=True,
            smallest=10.0,
        ),
        Column(
            "f0_spread",
            "Pitch deviation",
            "Standard deviation of the pitch; monotonous speech has a small one. People who read "
            "aloud have 2 to 5 semitones.",
            unit="semitones",
            digits=1,
            smallest=0.5,
        ),
        Column("voiced", "Voiced frames", "Fraction of frames with a pitch.", unit="%", digits=0),
    )

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [pitch_of(utterance) for utterance in utterances]


def pitch_of(utterance: Utterance) -> Values | Unmeasured:
    """The pitch statistics of one utterance."""
    short = Unmeasured(f"less than {SHORTEST_VOICED:g} s voiced")
    if utterance.seconds < SHORTEST_VOICED:
        return short
    f0, voiced = track_pitch(
        resample(utterance.wave, utterance.rate, RATE),
        low=LOWEST,
        high=HIGHEST,
        rate=RATE,
        frame_length=FRAME,
        hop_length=HOP,
        resolution=RESOLUTION,
    )
    if voiced.sum() * HOP < SHORTEST_VOICED * RATE:
        return short
    frequencies = f0[voiced]
    return {
        "f0_median": float(np.median(frequencies)),
        "f0_spread": float(12 * np.std(np.log2(frequencies))),
        "voiced": float(voiced.mean()),
    }
