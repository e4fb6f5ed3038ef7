"""Words of a recording with their times, phrases of words, and the choice of clips.

Whisper transcribes windows that end in pauses. Decoding is a beam search at temperature 0, without
the fallback to sampling and without text from the previous window. A transcript depends on its
window alone. Timestamps come from cross-attention; they are occasionally wrong by 0.1 s, and a word
may include a neighbouring pause. A clip is a run of phrases of one speaker.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tts_assets.core.audio import Wave
from tts_assets.corpora.segments import SegmentConfig
from tts_assets.corpora.segments.speech import RATE, Interval

LONGEST_WINDOW = 28.0  # s; Whisper's input has 30
SILENCE_AROUND = 0.2  # s before and after the speech of a window
WHISPER_SAMPLES = 30 * RATE
LONGEST_TEXT = 448  # tokens; the context of Whisper's decoder
BEAM_SIZE = 5
NOT_WORDS = re.compile(r"[\d$£€%#&+=<>@\[\](){}*♪♫]")
PREPENDED, APPENDED = (
    "\"'“¿([{-",
    "\"'.。,，!！?？:：”)]}、",
)  # punctuation that is joined to a word


@dataclass(frozen=True)
class Word:
    """One word with its time in seconds of the recording.

    ``text`` is Whisper's, with the space before it and the punctuation after it. ``probability``
    is between 0 and 1.
    """

    text: str
    start: float
    end: float
    probability: float

    @property
    def interval(self) -> Interval:
        """The time of the word."""
        return Interval(self.start, self.end)

    @property
    def ends_sentence(self) -> bool:
        """Whether the word ends with sentence punctuation."""
        return self.text.rstrip("\"'”’»)")[-1:] in set(".?!…。？！")


class WordTranscriber:
    """A Whisper model in CTranslate2 format, read from ``folder``.

    It runs on one thread, so that results do not depend on the number of cores. ``device`` is a
    torch device name.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from faster_whisper import WhisperModel  # not at module level: Dagster imports this module

        kind, _, number = device.partition(":")
        self.whisper = WhisperModel(
            str(folder),
            device=kind,
            device_index=int(number or 0),
            compute_type="int8" if kind == "cpu" else "float16",
            cpu_threads=1,
            local_files_only=True,
        )

    @property
    def knows_english_only(self) -> bool:
        """Whether the model has no language tokens."""
        return not self.whisper.model.is_multilingual

    @cached_property
    def not_words(self) -> list[int]:
        """Tokens that transcripts for training must not have.

        With digits and symbols suppressed, Whisper writes numbers as the words that it recognizes.
        A normalizer would guess them: "1998" may be spoken in two ways. Brackets and asterisks
        begin annotations such as "(beep)" and "[music]".
        """
        vocabulary = self.whisper.hf_tokenizer
        size = vocabulary.get_vocab_size(with_added_tokens=False)
        texts = vocabulary.decode_batch([[token] for token in range(size)])
        return [token for token, text in enumerate(texts) if NOT_WORDS.search(text)]

    def language(self, wave: Wave) -> str:
        """The language of up to 30 s of speech (samples,) at 16 kHz, as a code of two letters."""
        return str(self.whisper.detect_language(wave)[0])

    def words(self, wave: Wave, window: Interval, language: str) -> list[Word]:
        """The words within a window of ``wave`` (16 kHz), in order; ``language``: two letters."""
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import merge_punctuations

        first = max(0, round((window.start - SILENCE_AROUND) * RATE))
        last = min(len(wave), round((window.end + SILENCE_AROUND) * RATE))
        tokenizer = Tokenizer(
            self.whisper.hf_tokenizer,
            not self.knows_english_only,
            task="transcribe",
            language=language,
        )
        silence = max(0, WHISPER_SAMPLES - (last - first))
        mel = self.whisper.feature_extractor(np.pad(wave[first:last], (0, silence)), padding=0)
        encoded = self.whisper.encode(mel)
        prompt = self.whisper.get_prompt(tokenizer, [], without_timestamps=True)
        (result,) = self.whisper.model.generate(
            encoded,
            [prompt],
            beam_size=BEAM_SIZE,
            max_length=LONGEST_TEXT,
            suppress_tokens=[-1, *self.not_words],  # -1: those of the model's configuration
        )
        tokens = [token for token in result.sequences_ids[0] if token < tokenizer.eot]
        if not tokens:
            return []
        frames = (last - first) // self.whisper.feature_extractor.hop_length
        (alignment,) = self.whisper.find_alignment(tokenizer, [tokens], encoded, frames)
        merge_punctuations(alignment, PREPENDED, APPENDED)
        offset = first / RATE
        return [
            Word(
                text=word["word"],
                start=round(offset + float(word["start"]), 3),
                end=round(offset + float(word["end"]), 3),
                probability=round(float(word["probability"]), 4),
            )
            for word in alignment
            if word["word"]
        ]


def windows(speech: Sequence[Interval]) -> Iterator[Interval]:
    """Intervals of up to 28 s that hold all speech. Speech without a pause for 28 s is left out.

    A window ends at the longest pause of its second half.
    """
    left = [interval for interval in speech if interval.seconds <= LONGEST_WINDOW]
    while left:
        start = left[0].start
        fits = [i for i, part in enumerate(left) if part.end - start <= LONGEST_WINDOW]
        later = [i for i in fits if left[i].end - start > LONGEST_WINDOW / 2]
        last = fits[-1]
        if later and len(left) > len(fits):
            last = max(later, key=lambda i: left[i + 1].start - left[i].end)
        yield Interval(start, left[last].end)
        left = left[last + 1 :]


TIMESTAMP_ERROR = 0.1  # s; a word that overlaps speech for longer belongs to it
MID_SENTENCE = 1.0  # s; the penalty of a clip that ends within a sentence
OWN_CLIP = 0.1  # s; the bonus per clip, so that equal scores prefer one sentence per clip

TOO_SHORT, TOO_LONG = "too short", "too long without a pause"
NO_WORDS, WRONG_SPEAKER = "no words heard", "another speaker"
ANOTHER = -1  # the speaker of a phrase that no clip may contain


@dataclass(frozen=True)
class Phrase:
    """Speech between two possible cuts; ``limits`` is the interval of a clip that holds it.

    ``speaker`` is the index of the speaker, :data:`ANOTHER` for one whose speech is not wanted, or
    None: unknown.
    """

    speech: Interval
    limits: Interval
    words: tuple[Word, ...]
    speaker: int | None = None

    @property
    def ends_sentence(self) -> bool:
        """Whether the last word ends a sentence."""
        return bool(self.words) and self.words[-1].ends_sentence


def phrases(
    speech: Sequence[Interval], limits: Sequence[Interval], words: Sequence[Word]
) -> list[Phrase]:
    """The intervals of speech with their words, joined where a word spans a pause."""
    inseparable = _joined_by_a_word(speech, words)
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


def _joined_by_a_word(speech: Sequence[Interval], words: Sequence[Word]) -> set[int]:
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
    speakers = {phrase.speaker for phrase in run} - {None}
    if ANOTHER in speakers or len(speakers) > 1:
        return False
    gap = run[1].speech.start - first.speech.end if len(run) > 1 else 0.0
    return bool(first.words) and gap <= config.longest_pause and _length(run) <= config.max_seconds


def _length(run: Sequence[Phrase]) -> float:
    return run[-1].limits.end - run[0].limits.start


def _score(run: Sequence[Phrase]) -> float:
    seconds = sum(phrase.speech.seconds for phrase in run)
    return seconds + OWN_CLIP - (0.0 if run[-1].ends_sentence else min(MID_SENTENCE, seconds / 2))


def _reason(phrase: Phrase, config: SegmentConfig) -> str:
    if phrase.speaker == ANOTHER:
        return WRONG_SPEAKER
    if phrase.limits.seconds > config.max_seconds:
        return TOO_LONG
    return TOO_SHORT if phrase.words else NO_WORDS
