"""Metrics of the ASR transcript: WER, CER, dropped and repeated words, truncation.

``tts_assets/audio_models/wer.py`` normalizes and aligns text and transcript. An inserted word that
its neighbours in the transcript contain as well counts as a repetition.
"""

from __future__ import annotations

from collections.abc import Sequence

from tts_assets.audio_models.wer import TextMatch
from tts_assets.audio_models.whisper import NONE
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.metrics.metric import Column, Metric, Unmeasured, Utterance, Values


class Words(Metric):
    """WER, CER, and counts of dropped and repeated words."""

    name, version = "words", "2"
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
        ),
        Column(
            "cer",
            "CER",
            "Character error rate, without spaces.",
            better="low",
            weight="characters",
            unit="%",
            digits=1,
        ),
        Column(
            "perfect",
            "Without errors",
            "Fraction of syntheses whose transcript has no word error.",
            better="high",
            unit="%",
            digits=0,
        ),
        Column(
            "dropped",
            "Dropped words",
            "Words of the text without a counterpart in the transcript, per utterance.",
            better="low",
            unit="words",
            shown=True,
        ),
        Column(
            "repeated",
            "Repeated words",
            "Words that the transcript contains once more than the text, per utterance.",
            better="low",
            unit="words",
            shown=True,
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
                "dropped": float(dropped(match)),
                "repeated": float(repeated(match)),
            }
            for match in (utterance.match for utterance in utterances)
        ]


def dropped(match: TextMatch) -> int:
    """The number of deleted words."""
    return sum(len(span.reference) for span in match.spans if span.change == "delete")


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

    name, version = "truncation", "2"
    columns = (
        Column(
            "truncated",
            "Truncated",
            "Fraction of syntheses that reached the token limit, or whose last word is missing in "
            "the transcript, if there is one.",
            better="low",
            unit="%",
            digits=1,
        ),
    )

    def key(self, utterance: Utterance) -> None:
        return None

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [{"truncated": float(is_truncated(utterance))} for utterance in utterances]


def is_truncated(utterance: Utterance) -> bool:
    """Whether the token limit was reached, or the last word is deleted in the transcript."""
    return not utterance.ended or utterance.match.spans[-1].change == "delete"
