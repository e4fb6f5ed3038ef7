"""Word and character error rates (WER, CER) of transcripts, and their bootstrap intervals.

Text and transcript are normalized by the same rules, so that only differences in speech count:

1. English: the text front end, so that "10 km" and "ten kilometers" are equal; then Whisper's
   English normalizer (case, punctuation, contractions, spelling, numbers as
   figures). Every digit becomes a separate word, and the dot of a number is removed. Whisper writes
   spoken digits as "3719", "37-19", "3.719" or "3 7 1 9" without a rule. All of these, and "three
   seven one nine", become ``3 7 1 9``. A disadvantage: "thirty-seven nineteen" does, too. A
   transcript is compared with and without the front end; the better one counts.
2. Other languages: the text front end of training (``tts_assets/normalization``), so that "12 €"
   and "zwölf Euro" are equal; then letter case, punctuation and signs are dropped. A transcript
   with figures is compared in two readings, as numbers and digit by digit; the better one counts.
   Forms in :data:`SAME` are equal, and so are traditional and simplified Chinese characters.

In languages without spaces (``whisper.UNSPACED``) every letter is a word: the WER is the CER.

The rates of a set are sums of errors divided by sums of words, not means of rates: a long text
counts more than a short one. The interval of a difference is a paired bootstrap over texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, TypeAlias, cast

import jiwer
import numpy as np
from numpy.typing import NDArray

from tts_assets.audio_models.whisper import spoken_language, unspaced
from tts_assets.normalization.front_end import normalize
from tts_assets.normalization.rules import simplified_characters

LEADING_ZERO = re.compile(r"(?<![\d.])(?<!\d,)0\d+")
HALF_DAY = re.compile(r"\b([ap]) m\b")
DIGIT = re.compile(r"\d")
FIGURES = re.compile(r"\d(?:[ .,-]?\d)+")
BRACKETS = re.compile(r"\[[^\[\]]{0,100}\]|\([^()]{0,100}\)|<[^<>]{0,100}>")  # "[music]"
LETTER_WITH_MARKS = re.compile(r"[^\W_a-z0-9](?:(?!\w)[^\s])*|[a-z0-9]+")
# Forms of the same words.
SAME = {
    language: tuple((re.compile(pattern), form) for pattern, form in forms.items())
    for language, forms in {
        "de": {r"\bein(?=hundert|tausend)": "", r"\bok\b": "okay", "ß": "ss"},
        "fr": {r"\bok\b": "okay"},
        "es": {r"\bok\b": "okay"},
        "hu": {"kettő": "két", r"\bok(?:é|s)?\b": "oké"},
        "pl": {r"\bok\b": "okej"},
        "ru": {"ё": "е"},
        "zh": {"两": "二", "〇": "零", "幺": "一"},
        "hi": {"ँ": "ं"},
    }.items()
}

Change: TypeAlias = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True)
class Span:
    """A run of aligned words. A deletion has no hypothesis, an insertion no reference."""

    change: Change
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


@dataclass(frozen=True)
class TextMatch:
    """A normalized text and its normalized transcript, aligned with the fewest edits.

    ``reference`` is the text, ``hypothesis`` the transcript. Word errors are substitutions,
    deletions (words of the text only) and insertions (words of the transcript only), as NIST's
    sclite counts them. ``characters`` counts no spaces.
    """

    reference: str
    hypothesis: str
    substitutions: int
    deletions: int
    insertions: int
    words: int
    character_errors: int
    characters: int
    spans: tuple[Span, ...]

    @property
    def word_errors(self) -> int:
        """All word errors."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def errors_by_kind(self) -> str:
        """The counts in words, such as ``2 substitutions, 1 deletion``; empty without errors."""
        counts = {
            "substitution": self.substitutions,
            "deletion": self.deletions,
            "insertion": self.insertions,
        }
        named = (f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items() if n)
        return ", ".join(named)

    @property
    def wer(self) -> float:
        """Word error rate; above 1 if many words are inserted."""
        return self.word_errors / self.words

    @property
    def cer(self) -> float:
        """Character error rate without spaces."""
        return self.character_errors / self.characters


@dataclass(frozen=True)
class Interval:
    """A confidence interval, of 95 % if nothing else is said."""

    low: float
    high: float


def normalize_for_match(text: str, language: str = "en") -> str:
    """``text`` as words separated by single spaces, by the rules in this module's docstring."""
    if spoken_language(language) != "en":
        return _other_language(text, spoken_language(language))
    return _in_english(normalize(text, "en") or text)


def _in_english(text: str) -> str:
    """The normal form of an English text."""
    # the normalizer drops the zero of "0719" as a number: separate such digits first
    separated = LEADING_ZERO.sub(lambda run: " ".join(run[0]), text)
    text = _english()(separated)
    # the dots that the normalizer keeps belong to numbers, or are remains of "..."
    words = DIGIT.sub(r" \g<0> ", text.replace(".", " ")).split()
    # the normalizer writes a single 1 as "one", but 1 within a longer number as a figure
    joined = " ".join({"one": "1", "ok": "okay"}.get(word, word) for word in words)
    return HALF_DAY.sub(r"\1m", joined)


def _other_language(text: str, language: str) -> str:
    """The normal form of a text that is not English."""
    spoken = BRACKETS.sub(" ", normalize(text, language) or text)
    plain = unicodedata.normalize("NFKC", spoken).lower()
    plain = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in plain)
    if language in ("zh", "yue"):
        plain = plain.translate(simplified_characters())
    for pattern, form in SAME.get(language, ()):
        plain = pattern.sub(form, plain)
    if unspaced(language):
        plain = LETTER_WITH_MARKS.sub(r" \g<0> ", plain)
    return " ".join(plain.split())


def _hypotheses(transcript: str, language: str) -> list[str]:
    """The normal forms of a transcript: figures as numbers, and digit by digit or unread."""
    forms = [normalize_for_match(transcript, language)]
    if spoken_language(language) == "en":
        forms.append(_in_english(transcript))
    elif FIGURES.search(transcript):
        apart = FIGURES.sub(lambda run: " ".join(DIGIT.findall(run[0])), transcript)
        forms.append(normalize_for_match(apart, language))
    return forms


def match(text: str, transcript: str, language: str = "en") -> TextMatch:
    """Normalize and align ``text`` and ``transcript``; the transcript may be empty.

    Raises ValueError for a text without words.
    """
    reference = normalize_for_match(text, language)
    if not reference:
        raise ValueError(f"no words are left of the text {text!r} to compare a transcript with")
    readings = [(jiwer.process_words(reference, h), h) for h in _hypotheses(transcript, language)]
    words, hypothesis = min(readings, key=lambda each: each[0].wer)
    letters = reference.replace(" ", "")
    edits = jiwer.process_characters(letters, hypothesis.replace(" ", ""))
    return TextMatch(
        reference=reference,
        hypothesis=hypothesis,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        words=len(reference.split()),
        character_errors=edits.substitutions + edits.deletions + edits.insertions,
        characters=len(letters),
        spans=tuple(_spans(words)),
    )


def corpus_wer(matches: Iterable[TextMatch]) -> float:
    """The errors of all texts divided by the words of all texts."""
    matches = list(matches)
    return sum(m.word_errors for m in matches) / sum(m.words for m in matches)


def corpus_cer(matches: Iterable[TextMatch]) -> float:
    """The character errors of all texts divided by the characters of all texts."""
    matches = list(matches)
    return sum(m.character_errors for m in matches) / sum(m.characters for m in matches)


def rate_interval(
    errors: Sequence[float], words: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval over texts of ``sum(errors) / sum(words)``.

    Both have one entry for each text. For the interval of a weighted mean, ``words`` are the
    weights and ``errors`` the weighted values. The syntheses of one text are not independent:
    sum their entries first. Raises ValueError without any text.

    ``scipy.stats.bootstrap(method="percentile", paired=True)`` with the same seed draws the same
    resamples, but sums in another order: of 40 intervals 20 had the same bits, and all agreed to
    1e-16. It needs 3 to 30 times the time, because the draws here are shared by all metrics.
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
    level: float = 0.95,
) -> Interval:
    """Paired bootstrap interval of rate(b) - rate(a); entry i of all four is the same text."""
    a, b = _resampled_rates(
        np.array([errors_a, errors_b]), np.array([words_a, words_b]), resamples, seed
    )
    return _interval(b - a, level)


def _resampled_rates(
    errors: NDArray[np.float64], words: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Rates over resampled texts: counts (systems, texts) -> rates (systems, resamples)."""
    texts = errors.shape[1]
    if not texts:
        raise ValueError("no texts to resample")
    counts = _draw_counts(texts, resamples, seed)
    return (errors @ counts) / (words @ counts)


@lru_cache(maxsize=2)  # all metrics of a report resample the same texts; 80 MB for 1000 texts
def _draw_counts(texts: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each resample draws each text, (texts, resamples)."""
    picks = np.random.default_rng(seed).integers(0, texts, size=(resamples, texts))
    counts = np.zeros((texts, resamples))
    np.add.at(counts, (picks.T, np.arange(resamples)), 1.0)
    return counts


def _interval(values: NDArray[np.float64], level: float = 0.95) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _spans(output: jiwer.WordOutput) -> Iterable[Span]:
    reference, hypothesis = output.references[0], output.hypotheses[0]
    for chunk in output.alignments[0]:
        yield Span(
            change=cast(Change, chunk.type),
            reference=tuple(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
            hypothesis=tuple(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )


@cache
def _english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
