"""Dagster assets of promotion: ``promoted/<voice>`` and ``effect/<voice>``.

``promoted/<voice>`` is the promoted model of a voice, ``effect/<voice>`` compares its candidates
with the models that they are trained from.

Dagster lets a failed blocking check block assets of the same run only, and candidates are mostly
evaluated in earlier runs. The asset therefore asks the instance for the results of the checks.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from dagster import (
    AssetCheckKey,
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    DataVersion,
    Output,
    asset,
)

from resources.artifact_store import ArtifactStoreResource, asset_metadata, record_by_hand
from tts_assets.core.artifacts import ArtifactStore, Promoted, Report, TrainingEffect
from tts_assets.core.metadata import Markdown
from tts_assets.evaluation.assets import report_key
from tts_assets.evaluation.config import MAIN, EvaluationConfig
from tts_assets.orchestration.checks import blocking_checks, failed_checks
from tts_assets.orchestration.program_asset import Plan, Request, artifact_asset
from tts_assets.promotion.decision import PromotionConfig, describe_decisions, promote_best
from tts_assets.promotion.history import (
    CODE_VERSION,
    asset_name,
    describe_history,
    history,
    locked,
    promoted_now,
)

EFFECT_VERSION = "1"


def build_assets(
    promotions: Mapping[str, PromotionConfig],
    stages: Iterable[object],
    evaluation: EvaluationConfig,
    suites: Mapping[str, Sequence[str]],
    effects: Mapping[str, Mapping[str, str]],
) -> list[AssetsDefinition]:
    """The assets of each ``[promotion.<voice>]``.

    ``stages``: all other definitions; ``suites``: those of each recipe, its main suite first;
    ``effects``: the steps of training of the voices that have some, as in :func:`training_steps`.
    """
    checks = blocking_checks(stages)
    built = [promoted_asset(voice, config, checks) for voice, config in promotions.items()]
    for voice, steps in effects.items():
        own = {model: suites[model] for model in steps}
        built.append(effect_asset(voice, promotions[voice], steps, own, evaluation))
    return built


def effect_asset(
    voice: str,
    config: PromotionConfig,
    steps: Mapping[str, str],
    suites: Mapping[str, Sequence[str]],
    evaluation: EvaluationConfig,
) -> AssetsDefinition:
    """``effect/<voice>``: the models of ``steps`` on all suites that each of them synthesizes."""
    common = [n for n in next(iter(suites.values())) if all(n in own for own in suites.values())]
    used = {f"report_{n}": one for n, one in enumerate(product(common, steps))}

    def plan(request: Request, **inputs: Report) -> Plan[TrainingEffect]:
        from tts_assets.evaluation.effect import describe_effect, effect_of_reports

        reports = [(*one, inputs[name]) for name, one in used.items()]
        asked = voice, steps, reports, evaluation, config.category
        make = partial(effect_of_reports, request.store, *asked)
        known = {"steps": dict(steps), "suites": common, "category": config.category}
        return Plan(known, make, inputs=inputs, describe=describe_effect)

    return artifact_asset(
        ["effect", voice],
        plan,
        code_version=EFFECT_VERSION,
        ins={
            name: AssetIn(report_key(model, MAIN if suite == suites[model][0] else suite))
            for name, (suite, model) in used.items()
        },
        group_name="effects",
        kinds={"effect", "html"},
        description=f"Did training help {voice}? Each of {', '.join(steps)} against the model that "
        "it is trained from, with the worst regressions.",
    )


def promoted_asset(
    voice: str, config: PromotionConfig, checks: Collection[AssetCheckKey]
) -> AssetsDefinition:
    """The asset ``promoted/<voice>``.

    Recipes without a model or report, or that failed one of ``checks``, are no candidates.
    """

    @asset(
        key=asset_name(voice).split("/"),
        group_name="promotion",
        deps=[
            AssetKey([stage, name]) for name in config.candidates for stage in ("serving", "report")
        ],
        code_version=CODE_VERSION,
        kinds={"promoted", "huggingface"},
        description=f"The promoted model of {voice}: the one of {', '.join(config.candidates)} "
        f"whose report exceeds the previous one's by the margins {config.margins}. "
        f"`python -m tts_assets.promotion rollback {voice}` undoes the last change.",
    )
    def promoted(context: AssetExecutionContext, store: ArtifactStoreResource) -> Output[Promoted]:
        failed = partial(failed_checks, context.instance, checks)
        with locked(store.store, voice):
            before = promoted_now(store.store, voice)
            handle, decisions = promote_best(store.store, voice, config, failed)
        context.log.info("; ".join(f"{d.recipe}: {d.why}" for d in decisions))
        reused = before is not None and before.path == handle.path
        metadata = metadata_of(store.store, handle, reused, describe_decisions(decisions))
        return Output(handle, data_version=DataVersion(handle.content), metadata=metadata)

    return promoted


def metadata_of(
    store: ArtifactStore, handle: Promoted, reused: bool, decisions: str = ""
) -> dict[str, Any]:
    """Metadata of a change, with the decisions about candidates and the history of the voice."""
    tables = {
        "decisions": decisions,
        "history": describe_history(history(store, handle.facts.voice)),
    }
    described = {name: Markdown(table) for name, table in tables.items() if table}
    return asset_metadata(handle, store.root, described, {"reused": reused})


def report_to_dagster(store: ArtifactStore, handle: Promoted) -> None:
    """Add a change by hand to the asset's history, if ``DAGSTER_HOME`` names an instance."""
    why = f"{handle.facts.event}: {handle.facts.why}"
    record_by_hand(handle, why, metadata_of(store, handle, reused=False))
