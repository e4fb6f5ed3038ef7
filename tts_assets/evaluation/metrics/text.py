"""Metrics of the ASR transcript: WER and its kinds of errors, CER, repetitions, truncation.

``tts_assets/audio_models/wer.py`` normalizes and aligns text and transcript. Substitutions,
deletions and insertions are rates by the words of the text, so that their sum is the WER. An
inserted word that its neighbours in the transcript contain as well counts as a repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import category

import jiwer

from tts_assets.audio_models.wer import TextMatch
from tts_assets.audio_models.whisper import NONE
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.metrics import Column, Metric, Unmeasured, Utterance, Values


def error_column(name: str, title: str, about: str) -> Column:
    """The rate of one kind of word errors. Its short title is that of sclite's tables."""
    return Column(
        name,
        title,
        about,
        better="low",
        weight="words",
        unit="%",
        digits=1,
        shown=True,
        short=title[:3],
        smallest=0.005,
    )


class Words(Metric):
    """WER with its kinds of errors, CER, and repeated words."""

    name, version = "words", "4"
    columns = (
        Column(
            "wer",
            "WER",
            "Word error rate of the ASR transcript: substituted, deleted and inserted words, by "
            "the words of the text. Both are normalized, and each digit is a word. Clean "
            "recordings of people have about 3 %.",
            better="low",
            weight="words",
            unit="%",
            digits=1,
            shown=True,
            smallest=0.005,
        ),
        Column(
            "cer",
            "CER",
            "Character error rate, without spaces.",
            better="low",
            weight="characters",
            unit="%",
            digits=1,
            smallest=0.005,
        ),
        Column(
            "perfect",
            "Without errors",
            "Fraction of syntheses whose transcript has no word error.",
            better="high",
            unit="%",
            digits=0,
            smallest=0.02,
        ),
        error_column(
            "substitutions",
            "Substitutions",
            "Words of the text that the transcript has another word for, by the words of the text.",
        ),
        error_column(
            "deletions",
            "Deletions",
            "Words of the text that the transcript has no word for, by the words of the text.",
        ),
        error_column(
            "insertions",
            "Insertions",
            "Words that only the transcript has, by the words of the text. WER = substitutions + "
            "deletions + insertions.",
        ),
        Column(
            "repeated",
            "Repeated words",
            "Inserted words that also stand beside the insertion, per utterance: the model says "
            "them twice.",
            better="low",
            unit="words",
            smallest=0.05,
        ),
    )

    @classmethod
    def missing(cls, config: EvaluationConfig) -> str:
        return 'not measured: [evaluation] whisper is "none"' if config.whisper == NONE else ""

    def key(self, utterance: Utterance) -> None:
        return None

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [
            {
                "wer": match.wer,
                "cer": match.cer,
                "perfect": float(not match.word_errors),
                "substitutions": match.substitutions / match.words,
                "deletions": match.deletions / match.words,
                "insertions": match.insertions / match.words,
                "repeated": float(repeated(match)),
            }
            for match in (utterance.match for utterance in utterances)
        ]


class SeedWer(Metric):
    """The WER as Seed-TTS-eval computes it; not part of the default metrics.

    Punctuation except the apostrophe is removed, letters become lower case, numbers stay as they
    are written, and Chinese is compared by character. The total is the mean over the utterances.
    Source: github.com/BytedanceSpeech/seed-tts-eval.
    """

    name, version = "seed_wer", "1"
    columns = (
        Column(
            "seed_wer",
            "WER of Seed-TTS-eval",
            "Mean over the utterances of the WER without normalization of numbers.",
            better="low",
            unit="%",
            digits=1,
            smallest=0.005,
        ),
    )

    @classmethod
    def missing(cls, config: EvaluationConfig) -> str:
        return Words.missing(config)

    def key(self, utterance: Utterance) -> None:
        return None

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [self._measure_one(utterance) for utterance in utterances]

    def _measure_one(self, utterance: Utterance) -> Values | Unmeasured:
        language = utterance.text.language
        text = seed_words(utterance.text.text, language)
        if not text:
            return Unmeasured("the text has no words")
        heard = seed_words(utterance.transcript, language)
        return {"seed_wer": float(jiwer.wer(" ".join(text), " ".join(heard)))}


def seed_words(text: str, language: str) -> list[str]:
    """The words of a text, or its characters if it is Chinese, without punctuation."""
    kept = "".join(sign for sign in text if sign == "'" or category(sign)[0] not in "PS")
    return list("".join(kept.split())) if language.startswith("zh") else kept.lower().split()


def repeated(match: TextMatch) -> int:
    """The number of inserted words that the transcript also contains beside the insertion.

    "Beside" is at most as many words before or after as were inserted.
    """
    words = match.hypothesis.split()
    count = position = 0
    for span in match.spans:
        length = len(span.hypothesis)
        if span.change == "insert":
            before = words[max(0, position - length) : position]
            after = words[position + length : position + 2 * length]
            count += sum(word in before or word in after for word in span.hypothesis)
        position += length
    return count


class Truncation(Metric):
    """The fraction of syntheses that end before their text does."""

    name, version = "truncation", "3"
    columns = (
        Column(
            "truncated",
            "Truncated",
            "Fraction of syntheses that reached the token limit, or whose last word is missing in "
            "the transcript, if there is one.",
            better="low",
            unit="%",
            digits=1,
            smallest=0.01,
        ),
    )

    def key(self, utterance: Utterance) -> None:
        return None

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [{"truncated": float(is_truncated(utterance))} for utterance in utterances]


def is_truncated(utterance: Utterance) -> bool:
    """Whether the token limit was reached, or the last word is deleted in the transcript."""
    return not utterance.ended or utterance.match.spans[-1].change == "delete"
