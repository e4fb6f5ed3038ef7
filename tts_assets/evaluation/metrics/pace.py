"""Pace: how long it took, against a person, and words a second of speech."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tts_assets.audio import Wave, read_clip
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
