"""Phrases of a recording, and the choice of clips: runs of phrases of one speaker."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tts_assets.corpora.segments.config import SegmentConfig
from tts_assets.corpora.segments.speech import Interval
from tts_assets.corpora.segments.words import Word

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
