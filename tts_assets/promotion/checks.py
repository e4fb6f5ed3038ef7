"""What blocking checks said of an artifact, in whatever run. Dagster lets a failed one block only
in the run that evaluates it, and who serves is mostly decided in another."""

from collections.abc import Iterable

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    AssetRecordsFilter,
    AssetsDefinition,
    DagsterInstance,
)

from tts_assets.artifacts import Handle

LOOK_BACK = 50  # evaluations of one check: a year of weekly ones


def blocking_checks(definitions: Iterable[object]) -> list[AssetCheckKey]:
    """Those of ``definitions``: a gate that is no longer configured blocks nothing."""
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
    """The names of those of ``checks`` that failed when they last saw what ``artifact`` holds.

    A check that never saw it does not count: a report may have been made by hand, or Dagster's
    history emptied since, and a voice must not hang on either.
    """
    key = AssetKey(artifact.asset.split("/"))
    own = [check for check in checks if check.asset_key == key]
    found = {check.name: latest_evaluation(instance, check, artifact.content) for check in own}
    return [name for name, evaluation in found.items() if evaluation and not evaluation.passed]


def latest_evaluation(
    instance: DagsterInstance, check: AssetCheckKey, content: str
) -> AssetCheckEvaluation | None:
    """The newest one for this content: what was built again, or taken over, has it still.

    ``event_log_storage`` is no public interface of Dagster's, but it has no other that tells more
    than the latest record, which may be a plan: a run that fails before the check leaves that.
    """
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=LOOK_BACK)
    told: list[object] = [record.evaluation for record in history]  # plans among them
    evaluations = (found for found in told if isinstance(found, AssetCheckEvaluation))
    return next((e for e in evaluations if content_seen(instance, e) == content), None)


def content_seen(instance: DagsterInstance, evaluation: AssetCheckEvaluation) -> str | None:
    """The data version of what was checked; None where Dagster has forgotten it."""
    target = evaluation.target_materialization_data
    if target is None:
        return None
    asked = AssetRecordsFilter(evaluation.asset_key, storage_ids=[target.storage_id])
    for record in instance.fetch_materializations(asked, limit=1).records:
        if record.asset_materialization and record.asset_materialization.tags:
            return record.asset_materialization.tags.get("dagster/data_version")
    return None
