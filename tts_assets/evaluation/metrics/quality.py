"""Metrics of the audio: DNSMOS, DistillMOS, UTMOS, speaker similarity, the watermark, prosody.

DNSMOS and the default speaker encoder are in ``tts_assets/audio_models``. UTMOS is not available as
a package: ``[evaluation] utmos`` names an ONNX file. Its input is a waveform at 16 kHz, float32
(1, samples), and its output is the score. ``torch.onnx.export`` writes such a file from UTMOS22's
strong learner, which its authors publish. Source: Saeki et al., UTMOS (Interspeech 2022).

Metrics of prosody are duration, speaking rate and pitch. Pitch is the fundamental frequency (F0) by
probabilistic YIN as implemented in librosa. Source: Mauch and Dixon, pYIN (ICASSP 2014). Its
settings here are 8 kHz, frames of 64 ms, a hop of 20 ms and a resolution of a quarter of a
semitone. They need 0.02 s for a second of speech, and the medians differ from those at 16 kHz by at
most 2 %.

The smallest differences that matter: listeners notice 5 % of the speaking rate (Quené, On the just
noticeable difference for tempo in speech, J. Phonetics 35, 2007), and about one semitone of pitch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tts_assets.audio_models import dnsmos, speaker_similarity
from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.pitch import track_pitch
from tts_assets.audio_models.speaker_similarity import SpeakerSimilarity
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import Wave, read_clip, resample
from tts_assets.core.config import ConfigError, digest_of
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.metrics import (
    Column,
    Metric,
    Setting,
    Unmeasured,
    Utterance,
    Values,
)
from tts_assets.normalization.front_end import normalize
from tts_assets.speakers.config import encoder_digest, resolve

FRAME_SECONDS = 0.02
SILENT_DB = 30.0  # a frame this far below the loud frames is silent
LOUD_PERCENTILE = 95.0
SHORTEST_SPEECH = 0.1


class Dnsmos(Metric):
    """DNSMOS P.808 and the overall score of DNSMOS P.835."""

    name, version = "dnsmos", "1"
    columns = (
        Column(
            "dnsmos_p808",
            "DNSMOS P.808",
            "Predicted mean opinion score of the speech quality (ITU-T P.808), 1 to 5.",
            better="high",
            shown=True,
            smallest=0.1,
        ),
        Column(
            "dnsmos_overall",
            "DNSMOS P.835",
            "Predicted overall mean opinion score in the presence of noise (ITU-T P.835), 1 to 5.",
            better="high",
            smallest=0.1,
        ),
    )

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.scorer = DnsmosScorer()

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._measure_one(utterance) for utterance in utterances]

    def _measure_one(self, utterance: Utterance) -> Values | Unmeasured:
        mos = self.scorer(utterance.wave, utterance.rate)
        if mos is None:
            return Unmeasured(f"shorter than {dnsmos.SHORTEST_SECONDS:g} s")
        return {"dnsmos_p808": mos.p808, "dnsmos_overall": mos.overall}


class DistillMos(Metric):
    """DistillMOS, if its package is installed; not part of the default metrics."""

    name, version = "distillmos", "1"
    columns = (
        Column(
            "distillmos",
            "DistillMOS",
            "DistillMOS: predicted mean opinion score of the speech quality, 1 to 5.",
            better="high",
            smallest=0.1,
        ),
    )

    def __init__(self, setting: Setting) -> None:
        from tts_assets.audio_models.distillmos import DistillMosScorer  # imports torch

        super().__init__(setting)
        self.scorer = DistillMosScorer()

    @classmethod
    def missing(cls, config: EvaluationConfig) -> str:
        installed = find_spec("distillmos") is not None
        return "" if installed else "not given: run `pip install --no-deps distillmos==0.9.1`"

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._measure_one(utterance) for utterance in utterances]

    def _measure_one(self, utterance: Utterance) -> Values | Unmeasured:
        score = self.scorer(utterance.wave, utterance.rate)
        if score is None:
            return Unmeasured(f"shorter than {SHORTEST_SECONDS:g} s")
        return {"distillmos": score}


RATE = 16_000
SHORTEST_SECONDS = 0.1


class Utmos(Metric):
    """UTMOS22, if the configuration names its ONNX file."""

    name, version = "utmos", "1"
    columns = (
        Column(
            "utmos",
            "UTMOS",
            "UTMOS22: predicted MOS of the naturalness, 1 to 5.",
            better="high",
            smallest=0.1,
        ),
    )

    def __init__(self, setting: Setting) -> None:
        import onnxruntime

        super().__init__(setting)
        assert setting.config.utmos is not None, "missing() is called first"
        self.digest = sha256_file(setting.config.utmos)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(setting.config.utmos), options)
        self.input = self.session.get_inputs()[0].name

    @classmethod
    def missing(cls, config: EvaluationConfig) -> str:
        if config.utmos is None:
            return "not given: [evaluation] utmos names no ONNX file"
        if not config.utmos.is_file():
            return f"not given: there is no file {config.utmos.name}"
        return ""

    def key(self, utterance: Utterance) -> str:
        return self.digest

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._measure_one(utterance) for utterance in utterances]

    def _measure_one(self, utterance: Utterance) -> Values | Unmeasured:
        if utterance.seconds < SHORTEST_SECONDS:
            return Unmeasured(f"shorter than {SHORTEST_SECONDS:g} s")
        wave = resample(utterance.wave, utterance.rate, RATE)
        score = self.session.run(None, {self.input: wave[None].astype(np.float32)})[0]
        return {"utmos": float(np.mean(score))}


class Watermark(Metric):
    """Whether the watermark is found; not part of the default metrics."""

    name, version = "watermark", "1"
    columns = (
        Column(
            "watermark",
            "Watermark",
            "Share of the syntheses in which the watermark of synthetic speech is detected.",
            better="high",
            unit="%",
            digits=1,
        ),
    )

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._measure_one(utterance) for utterance in utterances]

    def _measure_one(self, utterance: Utterance) -> Values | Unmeasured:
        from tts_assets.audio_models.watermark import PRESENT, SHORTEST_SECONDS, detect

        score = detect(utterance.wave, utterance.rate)
        if score is None:
            return Unmeasured(f"silence, or shorter than {SHORTEST_SECONDS:g} s")
        return {"watermark": float(score > PRESENT)}


class Similarity(Metric):
    """Cosine similarity of speaker embeddings to a reference speaker.

    The reference is the speaker that the text names; else the voice prompt of the text; else the
    speaker of the corpora of ``[evaluation] reference_corpora``, or of the recipe's corpora.
    """

    name, version = "similarity", "2"
    columns = (
        Column(
            "speaker_similarity",
            "Speaker similarity",
            "Cosine of speaker embeddings to the reference: the voice prompt, or the mean of "
            "the speaker's recordings. The default encoder gives about 0.8 to 0.95 for the same "
            "speaker, 0.5 to 0.7 for another speaker.",
            better="high",
            smallest=0.02,
            shown=True,
        ),
    )

    def __init__(self, setting: Setting) -> None:
        from tts_assets.speakers.encoder import open_voices  # imports torch

        super().__init__(setting)
        name = setting.config.speaker_encoder
        self.encoder = open_voices(name)
        self.encoder_digest = encoder_digest(resolve(name, Path()))
        self._similarities: dict[tuple[Path, ...], SpeakerSimilarity] = {}
        self._keys: dict[tuple[Path, ...], str] = {}

    def references(self, utterance: Utterance) -> tuple[Path, ...]:
        """The clips of the reference speaker.

        Raises :class:`ConfigError` for a speaker without clips.
        """
        text = utterance.text
        if text.speaker:
            if text.speaker not in self.setting.speakers:
                raise ConfigError(f"{text.id}: no clips of speaker {text.speaker!r} were given")
            return self.setting.speakers[text.speaker]
        return (text.prompt_wav,) if text.prompt_wav else self.setting.references

    def key(self, utterance: Utterance) -> str:
        clips = self.references(utterance)
        if clips not in self._keys:
            digests = [sha256_file(clip) for clip in clips]
            self._keys[clips] = digest_of([self.encoder_digest, *digests])
        return self._keys[clips]

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._measure_one(utterance) for utterance in utterances]

    def _measure_one(self, utterance: Utterance) -> Values | Unmeasured:
        similarity = self._similarity(self.references(utterance))
        cosine = similarity(utterance.wave, utterance.rate)
        if cosine is None:
            return Unmeasured(f"less than {speaker_similarity.SHORTEST_SECONDS:g} s of speech")
        return {"speaker_similarity": cosine}

    def _similarity(self, clips: tuple[Path, ...]) -> SpeakerSimilarity:
        if clips not in self._similarities:
            read = [read_clip(clip) for clip in clips]
            waves = [(clip.wave, clip.rate) for clip in read]
            self._similarities[clips] = SpeakerSimilarity(self.encoder, waves)
        return self._similarities[clips]


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
        if speech < SHORTEST_SPEECH:
            return Unmeasured(f"less than {SHORTEST_SPEECH:g} s above silence")
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
            rate = characters / max(seconds_of(text.prompt_wav), SHORTEST_SPEECH)
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


PITCH_RATE = 8_000
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
        resample(utterance.wave, utterance.rate, PITCH_RATE),
        low=LOWEST,
        high=HIGHEST,
        rate=PITCH_RATE,
        frame_length=FRAME,
        hop_length=HOP,
        resolution=RESOLUTION,
    )
    if voiced.sum() * HOP < SHORTEST_VOICED * PITCH_RATE:
        return short
    frequencies = f0[voiced]
    return {
        "f0_median": float(np.median(frequencies)),
        "f0_spread": float(12 * np.std(np.log2(frequencies))),
        "voiced": float(voiced.mean()),
    }
