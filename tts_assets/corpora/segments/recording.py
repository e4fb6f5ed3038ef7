"""One recording to clips in the audio pool, with a span for every frame.

A recording is cut in pauses. A pause is a possible cut if audio and text agree: silero-vad finds no
speech for long enough, and no word of Whisper overlaps the speech on both sides. Speech between two
possible cuts is a phrase. Clips are runs of phrases, chosen by dynamic programming.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soundfile

from tts_assets.audio_models.speaker_similarity import SpeakerSimilarity
from tts_assets.core.audio import AudioPool, Clip, Wave, resample
from tts_assets.corpora.segments.config import PAUSE, SegmentConfig
from tts_assets.corpora.segments.speech import (
    RATE,
    Interval,
    Levels,
    amplify,
    clip_limits,
    find_speech,
    gain_to,
    measure,
)
from tts_assets.corpora.segments.words import Word, WordTranscriber, windows

VAD_THRESHOLD = 0.5  # speech probability; the default of silero-vad
MIN_CONFIDENCE = 0.5  # mean word probability of a clip
MAX_TRUE_PEAK = -1.0  # dBTP, as EBU R128 recommends
TIMESTAMP_ERROR = 0.1  # s; a word that overlaps speech for longer belongs to it
MID_SENTENCE = 1.0  # s; the penalty of a clip that ends within a sentence
OWN_CLIP = 0.1  # s; the bonus per clip, so that equal scores prefer one sentence per clip

TOO_SHORT, TOO_LONG = "too short", "too long without a pause"
NO_WORDS = "no words heard"
NO_SPEECH, LOW_CONFIDENCE, WRONG_SPEAKER = "no speech", "low confidence", "another speaker"


@dataclass(frozen=True)
class Transcript:
    """The intervals of speech in a recording, and its words."""

    language: str
    speech: tuple[Interval, ...]
    words: tuple[Word, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON value that the cache holds."""
        return {
            "language": self.language,
            "speech": [[part.start, part.end] for part in self.speech],
            "words": [[w.text, w.start, w.end, w.probability] for w in self.words],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Transcript:
        """The inverse of :meth:`to_json`."""
        return cls(
            language=value["language"],
            speech=tuple(Interval(*part) for part in value["speech"]),
            words=tuple(Word(*word) for word in value["words"]),
        )


@dataclass(frozen=True)
class Span:
    """Frames ``start`` to before ``end`` of a recording.

    A span is a clip, with its name in the audio pool, or it has the ``reason`` why it is none. The
    spans of a recording are contiguous and cover it.
    """

    start: int
    end: int
    reason: str = ""
    text: str = ""
    clip: str = ""
    sha256: str = ""
    gain_db: float = 0.0
    confidence: float = 0.0
    speaker_similarity: float | None = None


@dataclass(frozen=True)
class Phrase:
    """Speech between two possible cuts; ``limits`` is the interval of a clip that holds it."""

    speech: Interval
    limits: Interval
    words: tuple[Word, ...]

    @property
    def ends_sentence(self) -> bool:
        """Whether the last word ends a sentence."""
        return bool(self.words) and self.words[-1].ends_sentence


def phrases(
    speech: Sequence[Interval], limits: Sequence[Interval], words: Sequence[Word]
) -> list[Phrase]:
    """The intervals of speech with their words, joined where a word spans a pause."""
    inseparable = _inseparable(speech, words)
    groups: list[list[int]] = []
    for index in range(len(speech)):
        if index in inseparable:
            groups[-1].append(index)
        else:
            groups.append([index])
    wholes = [Interval(speech[group[0]].start, speech[group[-1]].end) for group in groups]
    assigned: list[list[Word]] = [[] for _ in wholes]
    for word in words:
        near = _near(word, wholes)
        assigned[max(near, key=lambda index: word.interval.overlap(wholes[index]))].append(word)
    return [
        Phrase(whole, Interval(limits[group[0]].start, limits[group[-1]].end), tuple(inside))
        for group, whole, inside in zip(groups, wholes, assigned, strict=True)
    ]


def _inseparable(speech: Sequence[Interval], words: Sequence[Word]) -> set[int]:
    """The indices of intervals that share a word with the interval before."""
    return {
        index
        for word in words
        for index in _near(word, speech)[1:]
        if word.interval.overlap(speech[index - 1]) > TIMESTAMP_ERROR
        and word.interval.overlap(speech[index]) > TIMESTAMP_ERROR
    }


def _near(word: Word, speech: Sequence[Interval]) -> range:
    """The indices of intervals that a word may overlap, and of their neighbours."""
    first = bisect_right(speech, word.start, key=lambda interval: interval.start) - 1
    last = bisect_right(speech, word.end, key=lambda interval: interval.start)
    return range(max(0, first), min(last, len(speech) - 1) + 1)


def choose(
    phrases: Sequence[Phrase], config: SegmentConfig
) -> tuple[list[tuple[Phrase, ...]], list[tuple[Phrase, str]]]:
    """The clips, each a run of phrases, and the phrases in no clip with the reason.

    Both are in the order of time. Dynamic programming maximizes the sum of scores: a clip scores
    its seconds of speech, minus MID_SENTENCE if it ends within a sentence.
    """
    best = [0.0]  # the highest score of the first n phrases
    begin: list[int | None] = [None]  # start of the clip that ends there; None: no clip
    for stop in range(1, len(phrases) + 1):
        score, chosen = best[stop - 1], None
        for start in range(stop - 1, -1, -1):
            run = phrases[start:stop]
            if not _joinable(run, config):
                break
            total = best[start] + _score(run)
            if _length(run) >= config.min_seconds and total > score:
                score, chosen = total, start
        best.append(score)
        begin.append(chosen)
    clips: list[tuple[Phrase, ...]] = []
    left: list[tuple[Phrase, str]] = []
    stop = len(phrases)
    while stop:
        first = begin[stop]
        if first is None:
            stop -= 1
            left.append((phrases[stop], _reason(phrases[stop], config)))
        else:
            clips.append(tuple(phrases[first:stop]))
            stop = first
    return clips[::-1], left[::-1]


def _joinable(run: Sequence[Phrase], config: SegmentConfig) -> bool:
    """Whether a run can be a clip or its end. If not, no longer run with this end can."""
    first = run[0]
    gap = run[1].speech.start - first.speech.end if len(run) > 1 else 0.0
    return bool(first.words) and gap <= config.longest_pause and _length(run) <= config.max_seconds


def _length(run: Sequence[Phrase]) -> float:
    return run[-1].limits.end - run[0].limits.start


def _score(run: Sequence[Phrase]) -> float:
    seconds = sum(phrase.speech.seconds for phrase in run)
    return seconds + OWN_CLIP - (0.0 if run[-1].ends_sentence else min(MID_SENTENCE, seconds / 2))


def _reason(phrase: Phrase, config: SegmentConfig) -> str:
    if phrase.limits.seconds > config.max_seconds:
        return TOO_LONG
    return TOO_SHORT if phrase.words else NO_WORDS


def transcribe(
    wave: Wave, transcriber: WordTranscriber, language: str, config: SegmentConfig
) -> Iterator[float | Transcript]:
    """Yield the seconds done after each window of ``wave`` (16 kHz), and at last the transcript.

    ``language`` has two letters; if empty, it is detected from the longest window.
    """
    speech = find_speech(wave, VAD_THRESHOLD, PAUSE)
    parts = list(windows(speech))
    if not language and parts:
        longest = max(parts, key=lambda part: part.seconds)
        sample = wave[round(longest.start * RATE) : round(longest.end * RATE)]
        language = transcriber.language(sample)
    words: list[Word] = []
    for part in parts:
        words += transcriber.words(wave, part, language)
        yield part.end
    yield Transcript(language, tuple(speech), tuple(words))


def cut(
    recording: Clip,
    transcript: Transcript,
    config: SegmentConfig,
    similarity: SpeakerSimilarity | None,
    pool: AudioPool,
) -> list[Span]:
    """Write the clips of a recording to the pool. Returns the spans of the whole recording."""
    rate, frames = recording.rate, len(recording.wave)
    wave = at_model_rate(recording)
    levels, whole = Levels(wave), Interval(0.0, frames / rate)
    limits = clip_limits(transcript.speech, whole, levels, config.margin)
    clips, left = choose(phrases(transcript.speech, limits, transcript.words), config)
    found = [
        Span(*_frames(phrase.speech, rate, frames), reason=why, text=_text([phrase]))
        for phrase, why in left
    ]
    for run in clips:
        span = _assessed(run, recording, config, similarity)
        found.append(span if span.reason else _written(span, recording, config, pool))
    return _without_holes(sorted(found, key=lambda span: span.start), frames)


def at_model_rate(recording: Clip) -> Wave:
    """The samples of a recording at 16 kHz, the rate of the models."""
    if recording.rate == RATE:
        return recording.wave
    return resample(recording.wave, recording.rate, RATE)


def _assessed(
    run: Sequence[Phrase],
    recording: Clip,
    config: SegmentConfig,
    similarity: SpeakerSimilarity | None,
) -> Span:
    """A run of phrases as a span, with the reason if it fails the confidence or speaker filter."""
    limits = Interval(run[0].limits.start, run[-1].limits.end)
    start, end = _frames(limits, recording.rate, len(recording.wave))
    words = [word for phrase in run for word in phrase.words]
    span = Span(
        start,
        end,
        text=_text(run),
        confidence=round(float(np.mean([word.probability for word in words])), 4),
    )
    if similarity is not None:
        near = similarity(recording.wave[start:end], recording.rate)
        span = replace(span, speaker_similarity=None if near is None else round(near, 4))
    if span.confidence < MIN_CONFIDENCE:
        return replace(span, reason=LOW_CONFIDENCE)
    if config.speaker and (span.speaker_similarity or -1) < config.speaker.min_similarity:
        return replace(span, reason=WRONG_SPEAKER)
    return span


def _written(span: Span, recording: Clip, config: SegmentConfig, pool: AudioPool) -> Span:
    """Write the span to the pool as a FLAC file; the span with its name, digest and gain."""
    wave = recording.wave[span.start : span.end]
    gain = 0.0
    if config.loudness != "none":
        gain = gain_to(measure(wave, recording.rate), config.loudness, MAX_TRUE_PEAK)
    audio = flac(amplify(wave, gain), recording.rate)
    digest = hashlib.sha256(audio).hexdigest()
    return replace(span, clip=pool.put(audio, ".flac"), sha256=digest, gain_db=gain)


def flac(wave: Wave, rate: int) -> bytes:
    """A mono wave (samples,) as a FLAC file, with 16 bits where they are exact, else with 24.

    The samples are scaled here: libsndfile reads 16 bits as multiples of 1/32768, but writes
    floats as multiples of 1/32767.
    """
    scaled = np.rint(wave.astype(np.float64) * 2**23)
    exact = bool(np.all(scaled % 256 == 0))
    samples = np.clip(scaled, -(2**23), 2**23 - 1).astype(np.int32) << 8  # libsndfile's 24 bits
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16" if exact else "PCM_24")
    return buffer.getvalue()


def _frames(interval: Interval, rate: int, frames: int) -> tuple[int, int]:
    return min(round(interval.start * rate), frames), min(round(interval.end * rate), frames)


def _text(run: Sequence[Phrase]) -> str:
    return "".join(word.text for phrase in run for word in phrase.words).strip()


def _without_holes(found: Sequence[Span], frames: int) -> list[Span]:
    """The spans, with NO_SPEECH spans between them."""
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
    """Whether the pool still has the clips of cached spans."""
    return all(pool.path(span.clip).is_file() for span in spans if span.clip)
