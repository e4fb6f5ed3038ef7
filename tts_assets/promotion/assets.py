"""Promotion as Dagster sees it: ``promoted/<voice>``, the model that serves.

What blocking checks said of an artifact, in whatever run. Dagster lets a failed one block only
in the run that evaluates it, and who serves is mostly decided in another.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetRecordsFilter,
    AssetsDefinition,
    DagsterInstance,
    DataVersion,
    MetadataValue,
    Output,
    asset,
)

from resources.artifact_store import ArtifactStoreResource, standard_metadata
from tts_assets.core.artifacts import ArtifactError, ArtifactStore, Handle, Promoted
from tts_assets.promotion.config import PromotionConfig
from tts_assets.promotion.decision import (
    CODE_VERSION,
    Candidate,
    CandidateDecision,
    FailedChecks,
    contender,
    decide,
    describe_promoted,
    history,
    locked,
    refused_models,
    reports_of,
    serving_now,
    switch,
    winner,
)

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


def build_assets(
    promotions: Mapping[str, PromotionConfig], stages: Iterable[object]
) -> list[AssetsDefinition]:
    """An asset for each ``[promotion.<voice>]``; ``stages``: what they promote, and its checks."""
    checks = blocking_checks(stages)
    return [promoted_asset(voice, config, checks) for voice, config in promotions.items()]


def promoted_asset(
    voice: str, config: PromotionConfig, checks: Collection[AssetCheckKey]
) -> AssetsDefinition:
    """The asset ``promoted/<voice>``. Candidates that were not made yet do not compete, nor do
    those that failed one of ``checks``, in whatever run."""
    stages = ("serving", "report")

    @asset(
        key=["promoted", voice],
        group_name="promotion",
        deps=[AssetKey([stage, name]) for name in config.candidates for stage in stages],
        code_version=CODE_VERSION,
        kinds={"huggingface"},
        description=f"What speaks for {voice}: of {', '.join(config.candidates)} the one whose "
        f"report beats what served before by the margins {config.margins}. "
        f"`python -m tts_assets.promotion rollback {voice}` takes the last change back.",
    )
    def promoted(context: AssetExecutionContext, store: ArtifactStoreResource) -> Output[Promoted]:
        failed = partial(failed_checks, context.instance, checks)
        with locked(store.store, voice):
            before = serving_now(store.store, voice)
            handle, verdicts = promote_best(store.store, voice, config, failed)
        context.log.info("; ".join(f"{v.recipe}: {v.why}" for v in verdicts))
        return Output(
            handle,
            data_version=DataVersion(handle.content),
            metadata={
                **standard_metadata(handle),
                "reused": before is not None and before.path == handle.path,
                "verdicts": MetadataValue.md(describe(verdicts)),
                "history": history_of(store.store, voice),
            },
        )

    return promoted


def promote_best(
    store: ArtifactStore, voice: str, config: PromotionConfig, failed: FailedChecks
) -> tuple[Promoted, list[CandidateDecision]]:
    """Switch to the candidate that wins, if one does; what serves now, and why."""
    found = {name: contender(store, name, failed) for name in config.candidates}
    verdicts = [
        CandidateDecision(n, False, why, {}) for n, why in found.items() if isinstance(why, str)
    ]
    able = {name: c for name, c in found.items() if isinstance(c, Candidate)}
    serves = serving_now(store, voice)
    if serves is None:
        return first(store, voice, able, verdicts)
    refused = refused_models(history(store, voice))
    reports = reports_of(store, serves.facts.recipe, serves.facts.model)
    verdicts += [decide(c, serves.facts.model, reports, config, refused) for c in able.values()]
    best = winner(verdicts, config)
    if best is None:
        return serves, verdicts
    why = next(verdict.why for verdict in verdicts if verdict.recipe == best)
    chosen = able[best]
    model = chosen.model
    return switch(store, voice, model, best, "promoted", why, chosen.report), verdicts


def first(
    store: ArtifactStore,
    voice: str,
    able: Mapping[str, Candidate],
    verdicts: list[CandidateDecision],
) -> tuple[Promoted, list[CandidateDecision]]:
    """Nothing serves yet: the first of the candidates that can."""
    if not able:
        reasons = "; ".join(f"{verdict.recipe}: {verdict.why}" for verdict in verdicts)
        raise ArtifactError(f"no candidate can serve {voice}: {reasons}")
    name, chosen = next(iter(able.items()))
    why = "the first candidate with a report"
    handle = switch(store, voice, chosen.model, name, "first", why, chosen.report)
    return handle, [*verdicts, CandidateDecision(name, True, why, {})]


def describe(verdicts: list[CandidateDecision]) -> str:
    lines = ["| candidate | | why |", "|---|---|---|"]
    lines += [f"| {v.recipe} | {'wins' if v.wins else 'no'} | {v.why} |" for v in verdicts]
    return "\n".join(lines)


def history_of(store: ArtifactStore, voice: str) -> MetadataValue:
    return MetadataValue.md(describe_promoted(history(store, voice)))


def tell_dagster(store: ArtifactStore, handle: Promoted) -> None:
    """A change by hand appears in the asset's history, where ``DAGSTER_HOME`` names an instance."""
    if not os.environ.get("DAGSTER_HOME"):
        return
    metadata: dict[str, Any] = {
        **standard_metadata(handle),
        "reused": False,
        "history": history_of(store, handle.facts.voice),
    }
    event = AssetMaterialization(
        AssetKey(handle.asset.split("/")),
        description=f"{handle.facts.event}: {handle.facts.why}",
        metadata=metadata,
        tags={"dagster/data_version": handle.content},
    )
    with DagsterInstance.get() as instance:
        instance.report_runless_asset_event(event)
