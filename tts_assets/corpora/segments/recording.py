"""One recording from its samples to clips in the audio pool, with every sample accounted for."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soundfile

from tts_assets.audio_models.speaker_similarity import SpeakerSimilarity
from tts_assets.core.audio import AudioPool, Clip, Wave, resample
from tts_assets.corpora.segments.config import SegmentConfig
from tts_assets.corpora.segments.cuts import Phrase, choose, phrases
from tts_assets.corpora.segments.speech import (
    RATE,
    Levels,
    Stretch,
    amplify,
    clip_limits,
    find_speech,
    gain_to,
    measure,
)
from tts_assets.corpora.segments.words import Word, WordTranscriber, windows

NO_SPEECH = "no speech"
LOW_CONFIDENCE, WRONG_SPEAKER = "low confidence", "another speaker"


@dataclass(frozen=True)
class Transcript:
    """Where there is speech in a recording, and what is said."""

    language: str
    speech: tuple[Stretch, ...]
    words: tuple[Word, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "language": self.language,
            "speech": [[part.start, part.end] for part in self.speech],
            "words": [[w.text, w.start, w.end, w.probability] for w in self.words],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Transcript:
        return cls(
            language=value["language"],
            speech=tuple(Stretch(*part) for part in value["speech"]),
            words=tuple(Word(*word) for word in value["words"]),
        )


@dataclass(frozen=True)
class Span:
    """Frames ``start`` to ``end`` of a recording: a clip (its name in the pool), or left out for
    a ``reason``. The spans of a recording are all of it, one after the other."""

    start: int
    end: int
    reason: str = ""
    text: str = ""
    clip: str = ""
    sha256: str = ""
    gain_db: float = 0.0
    confidence: float = 0.0
    speaker_similarity: float | None = None


def listen(
    wave: Wave, listener: WordTranscriber, language: str, config: SegmentConfig
) -> Iterator[float | Transcript]:
    """Transcribe a wave at 16 kHz: after each window how many seconds are done, at the end the
    transcript. ``language``: two letters, or empty to detect it."""
    speech = find_speech(wave, config.vad_threshold, config.pause)
    parts = list(windows(speech))
    if not language and parts:
        longest = max(parts, key=lambda part: part.seconds)
        language = listener.language(wave[round(longest.start * RATE) : round(longest.end * RATE)])
    words: list[Word] = []
    for part in parts:
        words += listener.words(wave, part, language)
        yield part.end
    yield Transcript(language, tuple(speech), tuple(words))


def cut(
    recording: Clip,
    transcript: Transcript,
    config: SegmentConfig,
    voice: SpeakerSimilarity | None,
    pool: AudioPool,
) -> list[Span]:
    """Write the clips of a recording into the pool; the spans of the whole recording."""
    rate, frames = recording.rate, len(recording.wave)
    wave = at_model_rate(recording)
    levels, whole = Levels(wave), Stretch(0.0, frames / rate)
    limits = clip_limits(transcript.speech, whole, levels, config.margin)
    clips, left = choose(phrases(transcript.speech, limits, transcript.words), config)
    found = [
        Span(*_frames(phrase.speech, rate, frames), reason=why, text=_text([phrase]))
        for phrase, why in left
    ]
    for run in clips:
        span = _judged(run, recording, config, voice)
        found.append(span if span.reason else _written(span, recording, config, pool))
    return _without_holes(sorted(found, key=lambda span: span.start), frames)


def at_model_rate(recording: Clip) -> Wave:
    """The recording at 16 kHz, as the models hear it."""
    if recording.rate == RATE:
        return recording.wave
    return resample(recording.wave, recording.rate, RATE)


def _judged(
    run: Sequence[Phrase], recording: Clip, config: SegmentConfig, voice: SpeakerSimilarity | None
) -> Span:
    """A run of phrases as a span, with the reason why it is no clip, if there is one."""
    limits = Stretch(run[0].limits.start, run[-1].limits.end)
    start, end = _frames(limits, recording.rate, len(recording.wave))
    words = [word for phrase in run for word in phrase.words]
    span = Span(
        start,
        end,
        text=_text(run),
        confidence=round(float(np.mean([word.probability for word in words])), 4),
    )
    if voice is not None:
        near = voice(recording.wave[start:end], recording.rate)
        span = replace(span, speaker_similarity=None if near is None else round(near, 4))
    if span.confidence < config.min_confidence:
        return replace(span, reason=LOW_CONFIDENCE)
    if config.speaker and (span.speaker_similarity or -1) < config.speaker.min_similarity:
        return replace(span, reason=WRONG_SPEAKER)
    return span


def _written(span: Span, recording: Clip, config: SegmentConfig, pool: AudioPool) -> Span:
    """The span as a FLAC file of the pool, with the gain that it got."""
    wave = recording.wave[span.start : span.end]
    gain = 0.0
    if config.loudness != "none":
        gain = gain_to(measure(wave, recording.rate), config.loudness, config.peak)
    audio = flac(amplify(wave, gain), recording.rate)
    digest = hashlib.sha256(audio).hexdigest()
    return replace(span, clip=pool.put(audio, ".flac"), sha256=digest, gain_db=gain)


def flac(wave: Wave, rate: int) -> bytes:
    """A mono wave as a FLAC file: in 16 bits where they hold every sample, else in 24.

    The samples are scaled here: libsndfile reads 16 bits as multiples of 1/32768, but writes
    floats as multiples of 1/32767.
    """
    scaled = np.rint(wave.astype(np.float64) * 2**23)
    exact = bool(np.all(scaled % 256 == 0))
    samples = np.clip(scaled, -(2**23), 2**23 - 1).astype(np.int32) << 8  # libsndfile's 24 bits
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16" if exact else "PCM_24")
    return buffer.getvalue()


def _frames(stretch: Stretch, rate: int, frames: int) -> tuple[int, int]:
    return min(round(stretch.start * rate), frames), min(round(stretch.end * rate), frames)


def _text(run: Sequence[Phrase]) -> str:
    return "".join(word.text for phrase in run for word in phrase.words).strip()


def _without_holes(found: Sequence[Span], frames: int) -> list[Span]:
    """The spans with what is between them: no speech."""
    spans: list[Span] = []
    done = 0
    for span in [*found, Span(frames, frames)]:
        if span.start > done:
            spans.append(Span(done, span.start, NO_SPEECH))
        if span.end > span.start:
            spans.append(span)
        done = span.end
    return spans


def clips_exist(spans: Sequence[Span], pool: AudioPool) -> bool:
    """Whether the clips of cached spans still lie in the pool."""
    return all(pool.path(span.clip).is_file() for span in spans if span.clip)
