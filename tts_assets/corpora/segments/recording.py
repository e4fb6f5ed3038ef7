"""One recording to clips in the audio pool, with a span for every frame; its speakers.

A recording is cut in pauses. A pause is a possible cut if audio and text agree: silero-vad finds no
speech for long enough, and no word of Whisper overlaps the speech on both sides. Speech between two
possible cuts is a phrase. Clips are runs of phrases, chosen by dynamic programming.

The speakers of a recording are a wanted one, or those that diarization finds. Windows of 1.6 s of
speech, every 0.4 s, are embedded by Resemblyzer and compared with the reference of the wanted
speaker, or with the mean embedding of each speaker that clustering finds. The lowest window decides
about a clip. The embedding of a whole clip hides a short part: with a threshold of 0.75 on it, 88
to 95 % of clips that contain 1 to 3 s of another voice were kept; with 0.6 on the lowest window
49 % with 1 s, 4 % with 1.5 s and 1 % with 2 s or more, and 95 % of clips of one voice (measured on
13 speakers, ten of them of LibriSpeech).

Diarization clusters the embeddings of phrases by average linkage of their cosine distances. Of 120
recordings made of phrases of 1 to 4 of these speakers, all had the right number of speakers, and
99.9 % of the speech was in the cluster of its speaker. ``pyannote.audio`` and ``sherpa-onnx`` are
not used: their packages contain no weights, and their weights need an account or a further
download, whereas the weights of Resemblyzer are part of its package.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from tts_assets.audio_models.speaker_similarity import Embedding, SpeakerEncoder
from tts_assets.core.audio import AudioPool, Clip, Wave, resample
from tts_assets.corpora.segments import PAUSE, SegmentConfig
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
from tts_assets.corpora.segments.words import (
    ANOTHER,
    WRONG_SPEAKER,
    Phrase,
    Word,
    WordTranscriber,
    choose,
    phrases,
    windows,
)

VAD_THRESHOLD = 0.5  # speech probability; the default of silero-vad
MIN_CONFIDENCE = 0.5  # mean word probability of a clip
MAX_TRUE_PEAK = -1.0  # dBTP, as EBU R128 recommends

NO_SPEECH, LOW_CONFIDENCE = "no speech", "low confidence"
SEVERAL_SPEAKERS = "several speakers"

SHORTEST = 1.0  # s of speech of a phrase; shorter ones have no reliable embedding
PHRASE_MARGIN = 0.05  # a phrase is another speaker's if it is so far below the limit of windows
LARGEST_DISTANCE = 0.35  # between two clusters of one speaker; 0.3 and 0.4 gave wrong numbers too
LEAST_SECONDS, LEAST_SHARE = 3.0, 0.05  # of speech: a smaller cluster is no speaker
MOST_PHRASES = 4000  # that are clustered: 128 MB of distances; further ones join the nearest

Embeddings = NDArray[np.float32]  # unit vectors (n, 256)


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
    spans of a recording are contiguous and cover it. ``speaker`` is the number of a speaker that
    diarization found, from 1; empty without diarization or for a recording of one speaker.
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
    speaker: str = ""


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
    speakers: FindSpeakers | None,
    pool: AudioPool,
) -> list[Span]:
    """Write the clips of a recording to the pool. Returns the spans of the whole recording.

    ``speakers`` labels the phrases with their speakers; None: they are not told apart.
    """
    rate, frames = recording.rate, len(recording.wave)
    wave = at_model_rate(recording)
    levels, whole = Levels(wave), Interval(0.0, frames / rate)
    limits = clip_limits(transcript.speech, whole, levels, config.margin)
    found_phrases = phrases(transcript.speech, limits, transcript.words)
    voices = speakers(wave, found_phrases) if speakers and found_phrases else None
    clips, left = choose(voices.phrases if voices else found_phrases, config)
    found = [
        Span(*_frames(phrase.speech, rate, frames), reason=why, text=_text([phrase]))
        for phrase, why in left
    ]
    for run in clips:
        span = _assessed(run, recording, wave, voices)
        found.append(span if span.reason else _written(span, recording, config, pool))
    return _fill_gaps(sorted(found, key=lambda span: span.start), frames)


def at_model_rate(recording: Clip) -> Wave:
    """The samples of a recording at 16 kHz, the rate of the models."""
    if recording.rate == RATE:
        return recording.wave
    return resample(recording.wave, recording.rate, RATE)


def _assessed(
    run: Sequence[Phrase],
    recording: Clip,
    wave: Wave,
    voices: Voices | None,
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
    alone = True
    if voices is not None and len(voices.speakers):
        speaker, lowest, alone = voices.assess(wave, run)
        named = str(speaker + 1) if len(voices.speakers) > 1 else ""
        span = replace(span, speaker_similarity=round(lowest, 4), speaker=named)
    if span.confidence < MIN_CONFIDENCE:
        return replace(span, reason=LOW_CONFIDENCE)
    if voices is not None and not alone:
        return replace(span, reason=WRONG_SPEAKER if voices.least else SEVERAL_SPEAKERS)
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


def _fill_gaps(found: Sequence[Span], frames: int) -> list[Span]:
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


@dataclass(frozen=True)
class Voices:
    """The speakers of a recording, and its phrases with the indices of their speakers.

    ``speakers`` are unit vectors (speakers, 256). ``least``: similarity that all windows of a clip
    must have; None: each window must be nearer to its own speaker than to the others.
    """

    encoder: SpeakerEncoder
    speakers: Embeddings
    phrases: list[Phrase]
    least: float | None = None

    def speaker_of(self, run: Sequence[Phrase]) -> int | None:
        """The index of the speaker of a run; None if all of its phrases are too short to say."""
        return next((p.speaker for p in run if p.speaker is not None), None)

    def assess(self, wave: Wave, run: Sequence[Phrase]) -> tuple[int, float, bool]:
        """Speaker of a clip, the lowest similarity of its windows to it, and whether it is alone.

        ``wave`` is the recording at 16 kHz.
        """
        similarities = self.encoder.windows(speech_of(wave, run)) @ self.speakers.T
        named = self.speaker_of(run)
        speaker = int(similarities.mean(axis=0).argmax()) if named is None else named
        lowest = float(similarities[:, speaker].min())
        if self.least is not None:
            return speaker, lowest, lowest >= self.least
        return speaker, lowest, bool((similarities.argmax(axis=1) == speaker).all())


FindSpeakers = Callable[[Wave, list[Phrase]], Voices]
"""Labels the phrases of a recording at 16 kHz with their speakers."""


def wanted_speaker(
    encoder: SpeakerEncoder, reference: Embedding, least: float, wave: Wave, phrases: list[Phrase]
) -> Voices:
    """The phrases of a recording (16 kHz) labelled as those of one speaker, or of another."""
    labelled = []
    for phrase in phrases:
        if phrase.speech.seconds >= SHORTEST:
            near = float(np.median(encoder.windows(speech_of(wave, [phrase])) @ reference))
            phrase = replace(phrase, speaker=0 if near >= least - PHRASE_MARGIN else ANOTHER)
        labelled.append(phrase)
    return Voices(encoder, reference[np.newaxis], labelled, least)


def diarized(encoder: SpeakerEncoder, wave: Wave, phrases: list[Phrase]) -> Voices:
    """The speakers of a recording (16 kHz), the one with the most speech first.

    Phrases of voices with too little speech are another speaker's.
    """
    long = [i for i, phrase in enumerate(phrases) if phrase.speech.seconds >= SHORTEST]
    if not long:
        return Voices(encoder, np.zeros((0, 256), np.float32), phrases)
    means = np.stack(
        [unit(encoder.windows(speech_of(wave, [phrases[i]])).mean(axis=0)) for i in long]
    )
    seconds = np.array([phrases[i].speech.seconds for i in long])
    clusters = clustered(means)
    totals = np.bincount(clusters, weights=seconds)
    least = max(LEAST_SHARE * totals.sum(), min(LEAST_SECONDS, totals.max()))
    order = [int(c) for c in np.argsort(-totals, kind="stable") if totals[c] >= least]
    index = {cluster: number for number, cluster in enumerate(order)}
    labels = {i: index.get(int(c), ANOTHER) for i, c in zip(long, clusters, strict=True)}
    speakers = np.stack([unit(means[clusters == c].mean(axis=0)) for c in order])
    named = [replace(phrase, speaker=labels.get(i)) for i, phrase in enumerate(phrases)]
    return Voices(encoder, speakers, named)


def clustered(embeddings: Embeddings) -> NDArray[np.int64]:
    """The cluster of each embedding, (n,)."""
    if len(embeddings) < 2:
        return np.zeros(len(embeddings), dtype=np.int64)
    from sklearn.cluster import AgglomerativeClustering

    some = embeddings[:: -(-len(embeddings) // MOST_PHRASES)]
    clustering = AgglomerativeClustering(
        n_clusters=None, distance_threshold=LARGEST_DISTANCE, metric="cosine", linkage="average"
    )
    found = clustering.fit_predict(some)
    if len(some) == len(embeddings):
        return np.asarray(found)
    centres = np.stack([unit(some[found == c].mean(axis=0)) for c in range(found.max() + 1)])
    return np.asarray((embeddings @ centres.T).argmax(axis=1))


def speech_of(wave: Wave, phrases: Sequence[Phrase]) -> Wave:
    """The speech of phrases without the pauses between them; ``wave`` has 16 kHz."""
    parts = (phrase.speech for phrase in phrases)
    return np.concatenate([wave[round(p.start * RATE) : round(p.end * RATE)] for p in parts])


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector (n,) scaled to length 1."""
    return (vector / np.linalg.norm(vector)).astype(np.float32)
