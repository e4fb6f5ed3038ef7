"""What must hold of a report: nothing is lost, nothing was trained on, metrics did not fail, and
it is not certainly worse than the incumbent's.

Is a report certainly worse than the incumbent's, by more than a margin?
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from tts_assets.evaluation.config import MAIN, EvaluationConfig
from tts_assets.evaluation.corpus_voices import samples_of
from tts_assets.evaluation.history import (
    measured,
    measured_differently,
    readable_reports,
)
from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.results import (
    AGAINST_TARGET,
    Difference,
    SampleResult,
    difference,
    read_samples,
    same_target,
)
from tts_assets.evaluation.suite import (
    SUITE_FILE,
    SuiteText,
    audio_digests,
    known_texts,
    read_suite,
)

FEWEST_TEXTS = 10  # below, a bootstrap interval means nothing


@dataclass(frozen=True)
class GateResult:
    """``worse_by`` is positive where the candidate is worse; ``low`` and ``high`` its interval."""

    passed: bool
    why: str
    texts: int = 0
    worse_by: float = 0.0
    low: float = 0.0
    high: float = 0.0


def judge(
    candidate: Sequence[SampleResult],
    incumbent: Sequence[SampleResult],
    column: Column,
    margin: float,
) -> GateResult:
    """Fails only if the whole 95 % interval of the difference lies beyond the margin.

    Paired over the texts that both reports said, so a suite that grew can still be judged.
    """
    both = {s.key for s in incumbent}
    change = difference(incumbent, [s for s in candidate if s.key in both], column)
    if change is None or change.texts < FEWEST_TEXTS:
        texts = change.texts if change else 0
        return GateResult(
            True, f"{texts} texts in common, {FEWEST_TEXTS} are needed to judge", texts
        )
    worse_by, low, high = worsening(change, column)
    certain = low > margin
    interval = f"95 % interval {column.signed_range(low, high)}"
    why = f"worse by {column.signed(worse_by)}, {interval}; margin {column.text(margin)}"
    return GateResult(not certain, why, change.texts, worse_by, low, high)


def worsening(change: Difference, column: Column) -> tuple[float, float, float]:
    """The difference and its interval, turned so that positive is worse."""
    if column.better == "high":
        return -change.difference, -change.high, -change.low
    return change.difference, change.low, change.high


@dataclass(frozen=True)
class TrainedOn:
    """What a recipe and those before it learnt from: the clips of ``corpora``; RLHF asked for the
    texts of the files ``prompts`` and the transcripts of ``asked``, after clips of ``voices``."""

    corpora: Collection[str]
    prompts: Collection[Path] = ()
    asked: Collection[str] = ()
    voices: Collection[str] = ()

    def of_suite(self, suite: str) -> "TrainedOn":
        """What to look through: of the transcripts that it asks for, RLHF leaves those of the main
        suite out, and with another suite it trains again."""
        return replace(self, asked=()) if suite == MAIN else self


def report_checks(
    report: AssetsDefinition,
    suite_key: AssetKey,
    learnt: TrainedOn,
    evaluation: EvaluationConfig,
) -> list[AssetChecksDefinition]:
    return [
        every_text_check(report, suite_key, evaluation),
        held_out_check(report, suite_key, learnt, evaluation),
        metrics_check(report),
        *(
            gate_check(report, column, margin, evaluation)
            for column, margin in evaluation.gates.margins.items()
        ),
    ]


def every_text_check(
    report: AssetsDefinition, suite_key: AssetKey, evaluation: EvaluationConfig
) -> AssetChecksDefinition:
    @asset_check(
        asset=report,
        additional_ins={"suite": AssetIn(key=suite_key)},
        blocking=True,
        description="Texts of the suite x seeds = syntheses in the report.",
    )
    def every_text_is_accounted_for(report: Report, suite: EvaluationSuite) -> AssetCheckResult:
        asked = {(t.id, seed) for t in suite_texts(suite, evaluation) for seed in evaluation.seeds}
        rows = [json.loads(line) for line in read_lines(report.path / "samples.jsonl")]
        scored = {(row["id"], row["seed"]) for row in rows}
        missing = [list(key) for key in sorted(asked - scored)]
        return AssetCheckResult(
            passed=asked == scored and len(rows) == len(asked),
            metadata={"asked": len(asked), "scored": len(rows), "missing": missing},
        )

    return every_text_is_accounted_for


def held_out_check(
    report: AssetsDefinition,
    suite_key: AssetKey,
    learnt: TrainedOn,
    evaluation: EvaluationConfig,
) -> AssetChecksDefinition:
    # The arrays are no input: Dagster gives a check all partitions, whatever the mapping says.
    @asset_check(
        asset=report,
        additional_ins={"suite": AssetIn(key=suite_key)},
        blocking=True,
        description="No recipe up to this one learnt a text or a voice prompt of the suite.",
    )
    def suite_is_held_out(
        report: Report, suite: EvaluationSuite, store: ArtifactStoreResource
    ) -> AssetCheckResult:
        clips = {
            name: samples_of({name: store.store.current("code_arrays", name)}, "train")
            for name in sorted({*learnt.corpora, *learnt.asked, *learnt.voices})
        }
        said, heard_by_it = {*learnt.corpora, *learnt.asked}, {*learnt.corpora, *learnt.voices}
        trained = [clip["transcript"] for name in said for clip in clips[name]]
        trained += [line for path in learnt.prompts for line in read_lines(path)]
        texts = suite_texts(suite, evaluation)
        known = known_texts(texts, trained, evaluation.language)
        audio = {
            clip.get("original_data", {}).get("audio_sha256")
            for name in heard_by_it
            for clip in clips[name]
        }
        heard = [name for name, digest in audio_digests(texts).items() if digest in audio]
        return AssetCheckResult(
            passed=not known and not heard,
            metadata={
                "trained_on": len(trained),
                "known": [text.id for text in known],
                "known_audio": heard,
            },
        )

    return suite_is_held_out


def metrics_check(report: AssetsDefinition) -> AssetChecksDefinition:
    @asset_check(
        asset=report,
        description="No metric raised an error. What is too short for one is no error.",
    )
    def metrics_did_not_fail(report: Report) -> AssetCheckResult:
        from tts_assets.evaluation.measuring import failed

        rows = [json.loads(line) for line in read_lines(report.path / "samples.jsonl")]
        reasons = Counter(
            f"{metric}: {reason}" for row in rows for metric, reason in row["set_aside"].items()
        )
        errors = [reason for reason in reasons if failed(reason.partition(": ")[2])]
        return AssetCheckResult(
            passed=not errors,
            severity=AssetCheckSeverity.WARN,
            metadata={"set_aside": dict(reasons), "errors": errors[:10]},
        )

    return metrics_did_not_fail


def gate_check(
    report: AssetsDefinition, column_name: str, margin: float, evaluation: EvaluationConfig
) -> AssetChecksDefinition:
    @asset_check(
        asset=report,
        name=f"{column_name}_gate",
        blocking=True,
        description=f"Not certainly worse than the incumbent by more than {margin:g}.",
    )
    def gate(report: Report, store: ArtifactStoreResource) -> AssetCheckResult:
        from tts_assets.evaluation.metrics.registry import columns_of, metric_of_columns

        column = next((c for c in columns_of(evaluation) if c.name == column_name), None)
        if column is None:
            return AssetCheckResult(passed=True, description=f"{column_name} is not measured")
        metric = metric_of_columns(evaluation)[column_name]
        before = incumbent(store.store, report, evaluation.gates.incumbent, column, metric)
        if before is None:
            why = "there is no incumbent yet that is measured alike"
            return AssetCheckResult(passed=True, description=why)
        if column_name in AGAINST_TARGET and not same_target([before.path, report.path]):
            why = "the incumbent's is measured against other recordings; set [evaluation] target"
            return AssetCheckResult(passed=True, description=why)
        verdict = judge(read_samples(report.path), read_samples(before.path), column, margin)
        return AssetCheckResult(
            passed=verdict.passed,
            description=verdict.why,
            metadata={
                "incumbent": before.manifest.inputs["serving"].content[:12],
                "texts": verdict.texts,
                "worse_by": verdict.worse_by,
                "low": verdict.low,
                "high": verdict.high,
                "margin": margin,
            },
        )

    return gate


def incumbent(
    store: ArtifactStore, report: Report, recipe: str, column: Column, metric: str
) -> Report | None:
    """The report to beat in ``column``, which ``metric`` gives: the best of ``recipe``, else of the
    report's own recipe.

    The best, and not the latest: a slow decline within the margin must not pass step by step, and a
    report that failed here is never the best. Reports that measured ``metric`` differently do not
    count, nor do old ones that cannot be read; raises :class:`ArtifactError` where the current one
    cannot.
    """
    suite, name = report.facts.suite, recipe or report.facts.recipe
    asset = f"report/{name}" if suite == MAIN else f"report/{name}/{suite}"
    others = [
        other
        for other in readable_reports(store, asset)
        if other.path != report.path
        and metric not in measured_differently([measured(report), measured(other)])
    ]
    if column.name in AGAINST_TARGET:
        others = [o for o in others if same_target([o.path, report.path])] or others
    best, worst = (max, -math.inf) if column.better == "high" else (min, math.inf)
    return best(
        others,
        key=lambda other: (other.facts.metrics.get(column.name, worst), other.path.name),
        default=None,
    )


def suite_texts(suite: EvaluationSuite, evaluation: EvaluationConfig) -> list[SuiteText]:
    return read_suite(suite.path / SUITE_FILE, evaluation.language)


def read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().split("\n") if line.strip()]
