"""Dagster checks of reports: complete, on held-out texts, without failed metrics, and gates.

A gate fails if a report is significantly worse than its baseline by more than a margin.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from tts_assets.core.artifacts import ArtifactStore, EvaluationSuite, Report
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.history import measured, measured_differently, readable_reports
from tts_assets.evaluation.metrics import Column, columns_of, metric_of_columns
from tts_assets.evaluation.recipes import TrainingData, samples_of
from tts_assets.evaluation.results import (
    FAILED,
    FEWEST_TEXTS,
    REFERENCE_COLUMNS,
    SAMPLES_FILE,
    Difference,
    SampleResult,
    difference,
    read_samples,
    same_references,
)
from tts_assets.evaluation.suite import (
    SUITE_FILE,
    SuiteText,
    audio_digests,
    known_texts,
    read_suite,
)
from tts_assets.rlhf.dpo_config import PREFERENCES_FILE


@dataclass(frozen=True)
class GateResult:
    """``worse_by`` is positive if the candidate is worse; ``low``, ``high``: its 95 % interval."""

    passed: bool
    why: str
    texts: int = 0
    worse_by: float = 0.0
    low: float = 0.0
    high: float = 0.0


def report_checks(
    report: AssetsDefinition,
    suite_key: AssetKey,
    training_data: TrainingData,
    evaluation: EvaluationConfig,
) -> list[AssetChecksDefinition]:
    """All checks of the asset ``report`` on the suite ``suite_key``."""
    return [
        every_text_check(report, suite_key, evaluation),
        held_out_check(report, suite_key, training_data, evaluation),
        metrics_check(report),
        *(
            gate_check(report, column, margin, evaluation)
            for column, margin in evaluation.gates.margins.items()
        ),
    ]


def every_text_check(
    report: AssetsDefinition, suite_key: AssetKey, evaluation: EvaluationConfig
) -> AssetChecksDefinition:
    """The blocking check that the report has every text with every seed exactly once."""

    @asset_check(
        asset=report,
        additional_ins={"suite": AssetIn(key=suite_key)},
        blocking=True,
        description="The report has one synthesis for each text of the suite and each seed.",
    )
    def every_text_is_accounted_for(report: Report, suite: EvaluationSuite) -> AssetCheckResult:
        asked = {(t.id, seed) for t in suite_texts(suite, evaluation) for seed in evaluation.seeds}
        rows = [json.loads(line) for line in read_lines(report.path / SAMPLES_FILE)]
        scored = {(row["id"], row["seed"]) for row in rows}
        missing = [list(key) for key in sorted(asked - scored)]
        unexpected = [list(key) for key in sorted(scored - asked)]
        return AssetCheckResult(
            passed=asked == scored and len(rows) == len(asked),
            metadata={
                "asked": len(asked),
                "scored": len(rows),
                "missing": missing,
                "unexpected": unexpected,
            },
        )

    return every_text_is_accounted_for


def held_out_check(
    report: AssetsDefinition,
    suite_key: AssetKey,
    training_data: TrainingData,
    evaluation: EvaluationConfig,
) -> AssetChecksDefinition:
    """The blocking check that no text or voice prompt of the suite is in the training data."""

    # The arrays are no inputs: Dagster loads all partitions of a check's input, whatever the
    # partition mapping selects.
    @asset_check(
        asset=report,
        additional_ins={"suite": AssetIn(key=suite_key)},
        blocking=True,
        description="The recipe and its base recipes were not trained on a text or voice prompt "
        "of the suite.",
    )
    def suite_is_held_out(
        report: Report, suite: EvaluationSuite, store: ArtifactStoreResource
    ) -> AssetCheckResult:
        text_corpora = {*training_data.corpora, *training_data.prompt_corpora}
        audio_corpora = {*training_data.corpora, *training_data.voice_corpora}
        clips = {
            name: samples_of({name: store.store.current("code_arrays", name)}, "train")
            for name in sorted(text_corpora | audio_corpora | {*training_data.pair_corpora})
        }
        trained = [clip["transcript"] for name in text_corpora for clip in clips[name]]
        trained += [line for path in training_data.prompts for line in read_lines(path)]
        pairs = read_pairs(store.store, training_data.preferences)
        trained += [pair["text"] for pair in pairs]
        voices = {pair["voice"]["source"] for pair in pairs if pair["voice"]}
        texts = suite_texts(suite, evaluation)
        known = known_texts(texts, trained, evaluation.language)
        audio = {
            clip.get("original_data", {}).get("audio_sha256")
            for name in {*audio_corpora, *training_data.pair_corpora}
            for clip in clips[name]
            if name in audio_corpora or clip.get("id") in voices
        } | voices
        known_audio = [name for name, digest in audio_digests(texts).items() if digest in audio]
        return AssetCheckResult(
            passed=not known and not known_audio,
            metadata={
                "trained_on": len(trained),
                "known": [text.id for text in known],
                "known_audio": known_audio,
            },
        )

    return suite_is_held_out


def metrics_check(report: AssetsDefinition) -> AssetChecksDefinition:
    """The check, not blocking, that no metric raised an exception."""

    @asset_check(
        asset=report,
        description="No metric raised an error. An utterance that is too short is no error.",
    )
    def metrics_did_not_fail(report: Report) -> AssetCheckResult:
        rows = [json.loads(line) for line in read_lines(report.path / SAMPLES_FILE)]
        reasons = Counter(
            f"{metric}: {reason}" for row in rows for metric, reason in row["set_aside"].items()
        )
        errors = [one for one in reasons if one.partition(": ")[2].startswith(FAILED)]
        return AssetCheckResult(
            passed=not errors,
            severity=AssetCheckSeverity.WARN,
            metadata={"set_aside": dict(reasons), "errors": errors[:10]},
        )

    return metrics_did_not_fail


def gate_check(
    report: AssetsDefinition, column_name: str, margin: float, evaluation: EvaluationConfig
) -> AssetChecksDefinition:
    """The blocking check that the report is not worse than the baseline in one column."""

    @asset_check(
        asset=report,
        name=f"{column_name}_gate",
        blocking=True,
        description=f"Not significantly worse than the baseline by more than {margin:g}.",
    )
    def gate(report: Report, store: ArtifactStoreResource) -> AssetCheckResult:
        column = next((c for c in columns_of(evaluation) if c.name == column_name), None)
        if column is None:
            return AssetCheckResult(passed=True, description=f"{column_name} is not measured")
        metric = metric_of_columns(evaluation)[column_name]
        before = baseline(store.store, report, evaluation.gates.baseline, column, metric)
        if before is None:
            why = "there is no earlier report that measures this in the same way"
            return AssetCheckResult(passed=True, description=why)
        if column_name in REFERENCE_COLUMNS and not same_references([before.path, report.path]):
            why = (
                "the baseline is measured against other recordings; "
                "set [evaluation] reference_corpora"
            )
            return AssetCheckResult(passed=True, description=why)
        result = gate_result(read_samples(report.path), read_samples(before.path), column, margin)
        return AssetCheckResult(
            passed=result.passed,
            description=result.why,
            metadata={
                "baseline": before.manifest.inputs["serving"].content[:12],
                "texts": result.texts,
                "worse_by": result.worse_by,
                "low": result.low,
                "high": result.high,
                "margin": margin,
            },
        )

    return gate


def gate_result(
    candidate: Sequence[SampleResult],
    baseline: Sequence[SampleResult],
    column: Column,
    margin: float,
) -> GateResult:
    """Fails only if the whole 95 % interval of the difference is beyond the margin.

    The difference is paired over the texts that both reports have, so that the suite may grow.
    """
    both = {s.key for s in baseline}
    change = difference(baseline, [s for s in candidate if s.key in both], column)
    if change is None or change.texts < FEWEST_TEXTS:
        texts = change.texts if change else 0
        return GateResult(True, f"{texts} texts in common, the gate needs {FEWEST_TEXTS}", texts)
    worse_by, low, high = worsening(change, column)
    interval = f"95 % interval {column.signed_range(low, high)}"
    why = f"worse by {column.signed(worse_by)}, {interval}; margin {column.text(margin)}"
    return GateResult(low <= margin, why, change.texts, worse_by, low, high)


def worsening(change: Difference, column: Column) -> tuple[float, float, float]:
    """The difference and its interval with a sign that makes positive values worse."""
    if column.better == "high":
        return -change.difference, -change.high, -change.low
    return change.difference, change.low, change.high


def baseline(
    store: ArtifactStore, report: Report, recipe: str, column: Column, metric: str
) -> Report | None:
    """The best other report in ``column`` of ``recipe``, or of the report's own recipe.

    It is the best and not the latest report, so that a series of small declines within the margin
    does not pass. Reports that measure ``metric`` differently and unreadable old ones do not count.
    Raises :class:`ArtifactError` if the current report is unreadable.
    """
    stage, own, *suite = report.asset.split("/")
    asset = "/".join([stage, recipe or own, *suite])
    others = [
        other
        for other in readable_reports(store, asset)
        if other.path != report.path
        and metric not in measured_differently([measured(report), measured(other)])
    ]
    if column.name in REFERENCE_COLUMNS:
        others = [o for o in others if same_references([o.path, report.path])] or others
    best, worst = (max, -math.inf) if column.better == "high" else (min, math.inf)
    return best(
        others,
        key=lambda other: (other.facts.metrics.get(column.name, worst), other.path.name),
        default=None,
    )


def suite_texts(suite: EvaluationSuite, evaluation: EvaluationConfig) -> list[SuiteText]:
    """The texts of a published suite."""
    return read_suite(suite.path / SUITE_FILE, evaluation.language)


def read_pairs(store: ArtifactStore, names: Iterable[str]) -> list[dict[str, Any]]:
    """The pairs of the current preferences of these names."""
    files = [store.current(f"preferences/{name}").path / PREFERENCES_FILE for name in names]
    return [json.loads(line) for path in files for line in read_lines(path)]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    return [line for line in path.read_text().split("\n") if line.strip()]
