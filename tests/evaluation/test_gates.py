"""A gate fails only for a report that is significantly worse by more than the margin."""

from __future__ import annotations

import pytest

from tts_assets.evaluation.checks import gate_result
from tts_assets.evaluation.metrics.quality import Similarity
from tts_assets.evaluation.metrics.text import Words
from tts_assets.evaluation.results import SampleResult

WER, SIMILARITY = Words.columns[0], Similarity.columns[0]


def samples(errors: list[int], similarity: float = 0.8) -> list[SampleResult]:
    """One text of five words for each number of word errors."""
    return [
        SampleResult(
            id=f"t{n}",
            category="c",
            text="a b c d e",
            seed=1,
            heard="",
            word_errors=wrong,
            words=5,
            character_errors=0,
            characters=5,
            seconds=1.0,
            ended=True,
            audio=None,
            values={"wer": wrong / 5, "speaker_similarity": similarity + 0.01 * (n % 3)},
        )
        for n, wrong in enumerate(errors)
    ]


@pytest.mark.parametrize(
    ("errors", "passed"),
    [
        ([0] * 40, True),
        ([1] + [0] * 39, True),  # half a point worse: within the margin
        ([5, 5] + [0] * 38, True),  # five points worse, in two texts: not significant
        ([1] * 40, False),
    ],
)
def test_wer_gate(errors: list[int], passed: bool) -> None:
    result = gate_result(samples(errors), samples([0] * 40), WER, margin=0.02)
    assert result.passed is passed
    assert result.low <= result.worse_by <= result.high


def test_similarity_gate() -> None:
    before, after = samples([0] * 40, 0.85), samples([0] * 40, 0.80)
    result = gate_result(after, before, SIMILARITY, margin=0.03)
    assert not result.passed
    assert result.worse_by == pytest.approx(0.05)
    assert gate_result(before, after, SIMILARITY, margin=0.0).passed, "an improvement never fails"


def test_few_texts_are_not_enough() -> None:
    result = gate_result(samples([5] * 5), samples([0] * 5), WER, margin=0.02)
    assert result.passed
    assert result.why == "5 texts in common, the gate needs 10"
