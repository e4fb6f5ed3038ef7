"""Words: how many were heard otherwise, dropped, or said again.

Both sides are normalized by the text's language (``hearing/text_match.py``) and aligned with the
fewest edits. An inserted word that its neighbours in the transcript say, too, is a repetition.

Truncation: speech that was cut off before the text was over.
"""

from __future__ import annotations

from collections.abc import Sequence

from tts_assets.audio_models.wer import TextMatch
from tts_assets.evaluation.metrics.metric import Column, Metric, Unmeasured, Utterance, Values


class Words(Metric):
    name, version = "words", "1"
    columns = (
        Column(
            "wer",
            "Word errors",
            "Words heard wrongly, missed or added, over words to say, both normalized; digits "
            "count one by one. Clean recordings of people score about 3 %.",
            better="low",
            weight="words",
            unit="%",
            digits=1,
            shown=True,
        ),
        Column(
            "cer",
            "Character errors",
            "The same by characters, without spaces.",
            better="low",
            weight="characters",
            unit="%",
            digits=1,
        ),
        Column(
            "perfect",
            "Perfect",
            "Share of syntheses in which every word was heard.",
            better="high",
            unit="%",
            digits=0,
        ),
        Column(
            "dropped",
            "Words dropped",
            "Words of the text that were not heard at all, an utterance.",
            better="low",
            unit="words",
            shown=True,
        ),
        Column(
            "repeated",
            "Words repeated",
            "Words heard once more than they stand in the text, an utterance.",
            better="low",
            unit="words",
            shown=True,
        ),
    )

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
    return sum(len(span.said) for span in match.spans if span.change == "delete")


def repeated(match: TextMatch) -> int:
    """Inserted words that stand in the transcript beside the insertion, too, within its length."""
    heard = match.heard.split()
    count = position = 0
    for span in match.spans:
        length = len(span.heard)
        if span.change == "insert":
            before = heard[max(0, position - length) : position]
            after = heard[position + length : position + 2 * length]
            count += sum(word in before or word in after for word in span.heard)
        position += length
    return count


class Truncation(Metric):
    name, version = "truncation", "1"
    columns = (
        Column(
            "truncated",
            "Cut short",
            "Share of syntheses that reached the token limit, or whose last word was not heard.",
            better="low",
            unit="%",
            digits=1,
        ),
    )

    def key(self, utterance: Utterance) -> None:
        return None

    def measure(self, utterances: Sequence[Utterance]) -> list[Values | Unmeasured]:
        return [{"truncated": float(cut_short(utterance))} for utterance in utterances]


def cut_short(utterance: Utterance) -> bool:
    return not utterance.ended or utterance.match.spans[-1].change == "delete"
