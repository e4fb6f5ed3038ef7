"""One clip against its text: what is heard, how it sounds, whose voice it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from tts_assets.audio import read_clip
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.results import SampleResult
from tts_assets.evaluation.suite import SuiteText
from tts_assets.hearing.naturalness import NaturalnessScorer
from tts_assets.hearing.speaker_similarity import SpeakerEncoder, SpeakerSimilarity
from tts_assets.hearing.text_match import match
from tts_assets.hearing.transcription import Transcriber
from tts_assets.speakers.source import resolve


class Scorer:
    """Whisper, DNSMOS and the speaker encoder, loaded once."""

    def __init__(self, config: EvaluationConfig, references: Sequence[Path]) -> None:
        """``references``: clips of the speaker whom the model imitates."""
        self.language = config.language
        self.transcriber = Transcriber(
            config.whisper,
            language=config.language,
            beam_size=config.beam_size,
            window_seconds=config.window_seconds,
            batch_size=1,  # a clip's transcript depends on the clip alone
            threads=1,
        )
        self.naturalness = NaturalnessScorer()
        encoder = resolve(config.speaker_encoder, Path())
        clips = [read_clip(path) for path in references]
        self.similarity = SpeakerSimilarity(
            SpeakerEncoder(encoder), [(clip.wave, clip.rate) for clip in clips]
        )

    def score(self, text: SuiteText, seed: int, audio: Path | None, ended: bool) -> SampleResult:
        """Score the file as it can be heard; no file counts as silence."""
        wave, rate = read_flac(audio) if audio else (np.zeros(0, dtype=np.float32), 1)
        heard = self.transcriber([(wave, rate)])[0]
        matched = match(text.text, heard, self.language)
        mos = self.naturalness(wave, rate)
        return SampleResult(
            id=text.id,
            category=text.category,
            text=text.text,
            seed=seed,
            heard=heard,
            word_errors=matched.word_errors,
            words=matched.words,
            character_errors=matched.character_errors,
            characters=matched.characters,
            seconds=len(wave) / rate,
            ended=ended,
            dnsmos_p808=_rounded(mos.p808 if mos else None),
            dnsmos_overall=_rounded(mos.overall if mos else None),
            speaker_similarity=_rounded(self.similarity(wave, rate)),
            audio=f"audio/{audio.name}" if audio else None,
        )


def write_flac(path: Path, wave: NDArray[np.float32], rate: int) -> None:
    """16-bit FLAC: lossless from here on, half the size of WAV, played by every browser."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(wave, -1.0, 1.0), rate, format="FLAC", subtype="PCM_16")


def read_flac(path: Path) -> tuple[NDArray[np.float32], int]:
    wave, rate = soundfile.read(path, dtype="float32")
    return wave, rate


def _rounded(value: float | None) -> float | None:
    """Four digits: what BLAS and ONNX change beyond them is no difference between two clips."""
    return None if value is None else round(value, 4)
