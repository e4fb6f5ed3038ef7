"""Where to cut: phrases between pauses, and which of them are a clip together.

A pause is a place to cut only if the ear and the text agree on it: silero-vad hears no speech for
long enough, and no word of Whisper's reaches into the speech on both sides of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tts_assets.corpora.segments.config import SegmentConfig
from tts_assets.corpora.segments.speech import Stretch
from tts_assets.corpora.segments.words import Word

TIMESTAMP_ERROR = 0.1  # s; a word that reaches further into speech belongs to it
MID_SENTENCE = 1.0  # s of speech that are given up for a cut at the end of a sentence
OWN_CLIP = 0.1  # s; of two equal ways the one with more clips: a sentence a clip

TOO_SHORT, TOO_LONG = "too short", "too long without a pause"
NO_WORDS = "no words heard"


@dataclass(frozen=True)
class Phrase:
    """What is spoken between two places to cut; ``limits``: as far as a clip of it may reach."""

    speech: Stretch
    limits: Stretch
    words: tuple[Word, ...]

    @property
    def ends_sentence(self) -> bool:
        return bool(self.words) and self.words[-1].ends_sentence


def phrases(
    speech: Sequence[Stretch], limits: Sequence[Stretch], words: Sequence[Word]
) -> list[Phrase]:
    """The stretches of speech with their words, joined where a word goes on over a pause."""
    inseparable = _inseparable(speech, words)
    groups: list[list[int]] = []
    for index in range(len(speech)):
        if index in inseparable:
            groups[-1].append(index)
        else:
            groups.append([index])
    wholes = [Stretch(speech[group[0]].start, speech[group[-1]].end) for group in groups]
    said: list[list[Word]] = [[] for _ in wholes]
    for word in words:
        near = _near(word, wholes)
        said[max(near, key=lambda index: word.stretch.overlap(wholes[index]))].append(word)
    return [
        Phrase(whole, Stretch(limits[group[0]].start, limits[group[-1]].end), tuple(heard))
        for group, whole, heard in zip(groups, wholes, said, strict=True)
    ]


def _inseparable(speech: Sequence[Stretch], words: Sequence[Word]) -> set[int]:
    """The stretches of which a word is, in part, in the stretch before."""
    return {
        index
        for word in words
        for index in _near(word, speech)[1:]
        if word.stretch.overlap(speech[index - 1]) > TIMESTAMP_ERROR
        and word.stretch.overlap(speech[index]) > TIMESTAMP_ERROR
    }


def _near(word: Word, speech: Sequence[Stretch]) -> range:
    """The stretches that a word may overlap, and those before and after them."""
    first = bisect_right(speech, word.start, key=lambda stretch: stretch.start) - 1
    last = bisect_right(speech, word.end, key=lambda stretch: stretch.start)
    return range(max(0, first), min(last, len(speech) - 1) + 1)


def choose(
    phrases: Sequence[Phrase], config: SegmentConfig
) -> tuple[list[tuple[Phrase, ...]], list[tuple[Phrase, str]]]:
    """Clips, each a run of phrases, that keep the most speech and end with sentences; and the
    phrases in none of them with the reason. Both in the order of time.

    Dynamic programming over the phrases: a clip scores its seconds of speech, less MID_SENTENCE
    if it ends within a sentence.
    """
    best = [0.0]  # the highest score of the first phrases
    begin: list[int | None] = [None]  # where the clip that ends there begins; None: left out
    for stop in range(1, len(phrases) + 1):
        score, chosen = best[stop - 1], None
        for start in range(stop - 1, -1, -1):
            run = phrases[start:stop]
            if not _joinable(run, config):
                break
            worth = best[start] + _worth(run)
            if _length(run) >= config.min_seconds and worth > score:
                score, chosen = worth, start
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
    """Whether a run can be (part of) a clip; where not, a longer one that ends there is none."""
    first = run[0]
    gap = run[1].speech.start - first.speech.end if len(run) > 1 else 0.0
    return bool(first.words) and gap <= config.longest_pause and _length(run) <= config.max_seconds


def _length(run: Sequence[Phrase]) -> float:
    return run[-1].limits.end - run[0].limits.start


def _worth(run: Sequence[Phrase]) -> float:
    seconds = sum(phrase.speech.seconds for phrase in run)
    return seconds + OWN_CLIP - (0.0 if run[-1].ends_sentence else min(MID_SENTENCE, seconds / 2))


def _reason(phrase: Phrase, config: SegmentConfig) -> str:
    if phrase.limits.seconds > config.max_seconds:
        return TOO_LONG
    return TOO_SHORT if phrase.words else NO_WORDS
