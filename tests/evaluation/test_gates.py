"""A gate stops what is certainly worse by more than the margin, and nothing else."""

from __future__ import annotations

import pytest

from tts_assets.evaluation.checks import judge
from tts_assets.evaluation.metrics.quality import Similarity
from tts_assets.evaluation.metrics.text import Words
from tts_assets.evaluation.results import SampleResult

WER, LIKENESS = Words.columns[0], Similarity.columns[0]


def samples(errors: list[int], likeness: float = 0.8) -> list[SampleResult]:
    """Texts of five words each with so many errors."""
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
            values={"wer": wrong / 5, "speaker_similarity": likeness + 0.01 * (n % 3)},
        )
        for n, wrong in enumerate(errors)
    ]


@pytest.mark.parametrize(
    ("errors", "passed"),
    [
        ([0] * 40, True),
        ([1] + [0] * 39, True),  # half a point worse: within the margin
        ([5, 5] + [0] * 38, True),  # five points worse, in two texts: may be chance
        ([1] * 40, False),
    ],
)
def test_word_errors(errors: list[int], passed: bool) -> None:
    verdict = judge(samples(errors), samples([0] * 40), WER, margin=0.02)
    assert verdict.passed is passed
    assert verdict.low <= verdict.worse_by <= verdict.high


def test_likeness_falls() -> None:
    before, after = samples([0] * 40, 0.85), samples([0] * 40, 0.80)
    verdict = judge(after, before, LIKENESS, margin=0.03)
    assert not verdict.passed
    assert verdict.worse_by == pytest.approx(0.05)
    assert judge(before, after, LIKENESS, margin=0.0).passed, "better is never stopped"


def test_few_texts_judge_nothing() -> None:
    verdict = judge(samples([5] * 5), samples([0] * 5), WER, margin=0.02)
    assert verdict.passed
    assert verdict.why == "5 texts in common, 10 are needed to judge"
