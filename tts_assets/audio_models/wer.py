"""How far a transcript is from its text: word and character error rates that mean something.

Both sides go through the same rules, so that only what was *said* differently counts:

1. Whisper's own English normalizer: case, punctuation, contractions, spelling, numbers as
   figures. Other languages: its basic normalizer (case and punctuation).
2. Every digit becomes a word of its own, and the dot of a number is dropped. A string of spoken
   digits is written by Whisper as "3719", "37-19", "3.719" or "3 7 1 9" at its whim; all of them,
   and "three seven one nine", become ``3 7 1 9``. The price: "thirty-seven nineteen" does, too.

Figures of a whole set are sums of errors over sums of words (not means of rates): a long text
counts more than a short one. The interval of a difference is a paired bootstrap over texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, TypeAlias, cast

import jiwer
import numpy as np
from numpy.typing import NDArray

from tts_assets.audio_models.whisper import spoken_language, unspaced

LEADING_ZERO = re.compile(r"(?<![\d.])0\d+")
DIGIT = re.compile(r"\d")

Change: TypeAlias = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True)
class Span:
    """A run of aligned words: said and heard. Deleted words have no heard, inserted no said."""

    change: Change
    said: tuple[str, ...]
    heard: tuple[str, ...]


@dataclass(frozen=True)
class TextMatch:
    """One text against one transcript, both normalized; counts of words and characters."""

    said: str
    heard: str
    word_errors: int
    words: int
    character_errors: int
    characters: int
    spans: tuple[Span, ...]

    @property
    def wer(self) -> float:
        """Word errors a word; above 1 when much was inserted."""
        return self.word_errors / self.words

    @property
    def cer(self) -> float:
        """Character errors a character, spaces not counted."""
        return self.character_errors / self.characters


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def normalize_for_match(text: str, language: str = "en") -> str:
    """``text`` as words separated by single spaces, by the rules at the top of this file."""
    if spoken_language(language) == "en":
        # "0719" as a number would lose its zero in the normalizer: spell such runs out first
        spelled = LEADING_ZERO.sub(lambda run: " ".join(run[0]), text)
        text = _english()(spelled)
    else:
        text = _basic(unspaced(language))(text)
    # what dots the normalizer leaves are those of numbers, and the rests of "..."
    words = DIGIT.sub(r" \g<0> ", text.replace(".", " ")).split()
    # the normalizer writes a lone 1 as "one", yet 1 in any longer number as a figure
    return " ".join("1" if word == "one" else word for word in words)


def match(text: str, heard: str, language: str = "en") -> TextMatch:
    """Compare what was to be said with what was heard; ``heard`` may be empty, ``text`` not."""
    said_words = normalize_for_match(text, language)
    heard_words = normalize_for_match(heard, language)
    if not said_words:
        raise ValueError(f"no words are left of the text {text!r} to compare a transcript with")
    words = jiwer.process_words(said_words, heard_words)
    said_letters, heard_letters = said_words.replace(" ", ""), heard_words.replace(" ", "")
    letters = jiwer.process_characters(said_letters, heard_letters)
    return TextMatch(
        said=said_words,
        heard=heard_words,
        word_errors=words.substitutions + words.deletions + words.insertions,
        words=len(said_words.split()),
        character_errors=letters.substitutions + letters.deletions + letters.insertions,
        characters=len(said_letters),
        spans=tuple(_spans(words)),
    )


def corpus_wer(matches: Iterable[TextMatch]) -> float:
    """Word errors of all texts over words of all texts."""
    matches = list(matches)
    return sum(m.word_errors for m in matches) / sum(m.words for m in matches)


def corpus_cer(matches: Iterable[TextMatch]) -> float:
    """Character errors of all texts over characters of all texts."""
    matches = list(matches)
    return sum(m.character_errors for m in matches) / sum(m.characters for m in matches)


def rate_interval(
    errors: Sequence[float], words: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval over texts of ``sum(errors) / sum(words)``; one entry a text.

    Of any mean: ``words`` are weights, ``errors`` weighted values.

    Where a text was spoken several times, its entries are summed first: its syntheses are not
    independent texts.
    """
    rates = _resampled_rates(np.array([errors]), np.array([words]), resamples, seed)[0]
    return _interval(rates)


def difference_interval(
    errors_a: Sequence[float],
    words_a: Sequence[float],
    errors_b: Sequence[float],
    words_b: Sequence[float],
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Paired bootstrap interval of WER(b) - WER(a); entry i of all four is the same text."""
    a, b = _resampled_rates(
        np.array([errors_a, errors_b]), np.array([words_a, words_b]), resamples, seed
    )
    return _interval(b - a)


def _resampled_rates(
    errors: NDArray[np.float64], words: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Rates of systems S over resampled texts T: (S, T) counts -> (S, resamples)."""
    texts = errors.shape[1]
    if not texts:
        raise ValueError("no texts to resample")
    times = _times_drawn(texts, resamples, seed)
    return (errors @ times) / (words @ times)


@lru_cache(maxsize=2)  # a report asks for the same texts once a metric; 80 MB for 1000 texts
def _times_drawn(texts: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each text is drawn in each resample, (texts, resamples)."""
    picks = np.random.default_rng(seed).integers(0, texts, size=(resamples, texts))
    times = np.zeros((texts, resamples))
    np.add.at(times, (picks.T, np.arange(resamples)), 1.0)
    return times


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))


def _spans(output: jiwer.WordOutput) -> Iterable[Span]:
    said, heard = output.references[0], output.hypotheses[0]
    for chunk in output.alignments[0]:
        yield Span(
            change=cast(Change, chunk.type),
            said=tuple(said[chunk.ref_start_idx : chunk.ref_end_idx]),
            heard=tuple(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )


@cache
def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


@cache
def _basic(split_letters: bool) -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=split_letters)
