"""Checks of published artifacts: ``artifact_check``, ``losses_are_finite``, and past results."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar, cast

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    AssetKey,
    AssetRecordsFilter,
    AssetsDefinition,
    DagsterInstance,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource, for_dagster
from tts_assets.core.artifacts import ArtifactError, ArtifactStore, Handle
from tts_assets.core.metadata import CheckResult
from tts_assets.core.program import METRICS_FILE, read_metrics

H = TypeVar("H", bound=Handle)
TERMS = (
    "mel",
    "val_mel",
    "loudness",
    "spread",
    "adversarial",
    "features",
    "judges",
)  # losses of codec training
LOOK_BACK = 50  # evaluations of a check: a year of weekly runs


def artifact_check(
    asset: AssetsDefinition,
    name: str,
    description: str,
    test: Callable[[ArtifactStore, H], CheckResult],
    *,
    warns: bool = False,
) -> AssetChecksDefinition:
    """The check ``name`` of the artifact of ``asset``. It blocks, unless it only ``warns``.

    ``test(store, handle)`` gives the result; the check also fails with the message of an
    :class:`ArtifactError` that it raises.
    """

    @asset_check(
        asset=asset,
        name=name,
        partitions_def=asset.partitions_def,
        blocking=not warns,
        description=description,
    )
    def check(store: ArtifactStoreResource, made: Handle) -> AssetCheckResult:
        try:
            result = test(store.store, cast(H, made))
        except ArtifactError as error:
            result = CheckResult(False, {}, str(error))
        return AssetCheckResult(
            passed=result.passed,
            severity=AssetCheckSeverity.WARN if warns else AssetCheckSeverity.ERROR,
            description=result.problem or None,
            metadata=for_dagster(result.metadata),
        )

    return check


def losses_check(trained: AssetsDefinition) -> AssetChecksDefinition:
    """The blocking check ``losses_are_finite`` of an artifact with a ``metrics.jsonl``."""
    return artifact_check(
        trained,
        "losses_are_finite",
        "No loss of the run, in training or validation, is infinite or not a number.",
        lambda _, made: finite_losses(made.path / METRICS_FILE),
    )


def finite_losses(path: Path) -> CheckResult:
    """Whether a ``metrics.jsonl`` has losses and all are finite."""
    losses, wrong = invalid_losses(path)
    if wrong:
        problem = f"{wrong[0]}: lower the learning rate, and materialize it again"
    else:
        problem = "" if losses else f"{METRICS_FILE} has no loss"
    return CheckResult(not problem, {"losses": losses, "not_finite": len(wrong)}, problem)


def invalid_losses(path: Path) -> tuple[int, list[str]]:
    """The number of losses in a ``metrics.jsonl``, and a message for each that is not finite."""
    losses, wrong = 0, []
    for record in read_metrics(path):
        for name, value in record.items():
            if "loss" in name or name in TERMS:
                losses += 1
                if not math.isfinite(value):
                    wrong.append(f"{name} of step {record['step']} is {value}")
    return losses, wrong


def blocking_checks(definitions: Iterable[object]) -> list[AssetCheckKey]:
    """The blocking checks of ``definitions``. A removed gate, for example, does not block."""
    return [
        spec.key
        for definition in definitions
        if isinstance(definition, AssetsDefinition)
        for spec in definition.check_specs
        if spec.blocking
    ]


def failed_checks(
    instance: DagsterInstance, checks: Iterable[AssetCheckKey], artifact: Handle
) -> list[str]:
    """The names of the ``checks`` whose last evaluation of this artifact's content failed.

    A check that never evaluated this content does not count: the report may have been made by
    hand, or Dagster's history may have been deleted, and neither must block a voice.
    """
    key = AssetKey(artifact.asset.split("/"))
    own = [check for check in checks if check.asset_key == key]
    found = {check.name: latest_evaluation(instance, check, artifact.content) for check in own}
    return [name for name, evaluation in found.items() if evaluation and not evaluation.passed]


def latest_evaluation(
    instance: DagsterInstance, check: AssetCheckKey, content: str
) -> AssetCheckEvaluation | None:
    """The newest evaluation of this content, also if the artifact was built again since.

    Dagster's public API returns only the latest record of a check. That may be a planned evaluation
    of a run that failed before the check. Therefore this reads ``event_log_storage``.
    """
    records = instance.event_log_storage.get_asset_check_execution_history(check, limit=LOOK_BACK)
    events: list[object] = [record.evaluation for record in records]  # some are planned evaluations
    evaluations = (event for event in events if isinstance(event, AssetCheckEvaluation))
    return next((e for e in evaluations if evaluated_content(instance, e) == content), None)


def evaluated_content(instance: DagsterInstance, evaluation: AssetCheckEvaluation) -> str | None:
    """The data version that was evaluated; None if Dagster has no record of it."""
    target = evaluation.target_materialization_data
    if target is None:
        return None
    asked = AssetRecordsFilter(evaluation.asset_key, storage_ids=[target.storage_id])
    for record in instance.fetch_materializations(asked, limit=1).records:
        if record.asset_materialization and record.asset_materialization.tags:
            return record.asset_materialization.tags.get("dagster/data_version")
    return None
