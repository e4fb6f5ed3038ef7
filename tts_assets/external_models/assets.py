"""Dagster assets of external models: ``family/<recipe>``, ``spoken/<recipe>``, ``model_families``.

They are the trained model, the suites as it synthesizes them, and the table of all models.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from dagster import AssetDep, AssetIn, AssetKey, AssetsDefinition

from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import (
    EvaluationSuite,
    ExternalModel,
    ExternalModelsTable,
    SampleManifest,
    SynthesizedSuite,
)
from tts_assets.core.audio import statement
from tts_assets.core.compute import Shape
from tts_assets.corpora.config import VoiceConsent, people
from tts_assets.corpora.filter import sample_lists
from tts_assets.corpora.validation import identified
from tts_assets.evaluation.assets import report_key, suite_key, synthesized_key
from tts_assets.evaluation.config import MAIN, EvaluationConfig
from tts_assets.evaluation.suite import SUITE_FILE
from tts_assets.external_models.config import (
    Environment,
    ExternalModelsConfig,
    ExternalRecipe,
    ExternalSynthesisProgram,
    ExternalTrainProgram,
    ModelSource,
    describe_model,
    describe_table,
    row,
    weights_digests,
    write,
)
from tts_assets.orchestration.dependencies import filtered_samples_of
from tts_assets.orchestration.program_asset import (
    Plan,
    Request,
    artifact_asset,
    group_of,
    program_asset,
)
from tts_assets.provenance import check_use, corpora_behind

CODE_VERSION = "3"
GROUP = "external_models"


def build_assets(
    config: ExternalModelsConfig,
    evaluation: EvaluationConfig,
    validation: ValidationSplit,
    speechlm: Mapping[str, str],
    shape: Shape,
    root: Path,
    consents: Callable[[str, Collection[str]], Mapping[str, VoiceConsent | None]],
    suites: Mapping[str, Sequence[str]] | None = None,
) -> list[AssetsDefinition]:
    """All assets; none without recipes. ``speechlm``: the stage of each SFT and RLHF recipe.

    ``suites``: those of each recipe; None: all that the configuration has.
    """
    if not config.recipes:
        return []
    assert config.python is not None  # checked by the configuration
    environment = Environment(root / config.python, root, shape, consents)
    recipes = config.recipes.items()
    models = [model_asset(name, recipe, validation, environment) for name, recipe in recipes]
    syntheses = [
        synthesis_asset(name, recipe, suite, evaluation.for_suite(suite), environment)
        for name, recipe in recipes
        for suite in (suites or {}).get(name) or evaluation.suites_of(name)
    ]
    return [*models, *syntheses, table_asset(config, speechlm)]


def model_asset(
    name: str, recipe: ExternalRecipe, validation: ValidationSplit, environment: Environment
) -> AssetsDefinition:
    """``family/<recipe>``: the trained model."""
    located = recipe.with_model(environment.root / recipe.model) if recipe.model else recipe

    def plan(request: Request, samples: Mapping[str, SampleManifest]) -> Plan[ExternalModel]:
        check_use(environment.consents(name, ()), f"family/{name} is not published", request.store)
        known = {
            "recipe": recipe.canonical(exclude={"model"}),
            "weights": weights_digests(located.model),
            "validation": identified(validation, samples),
        }
        return Plan(
            known,
            program=lambda work: ExternalTrainProgram(
                run_dir=work,
                name=name,
                python=environment.python,
                recipe=located,
                samples=sample_lists(samples),
                validation=validation,
            ),
            seed=recipe.seed,
            describe=describe_model,
        )

    start = "published weights" if recipe.model else "random weights"
    verb = "converted from" if recipe.family == "tortoise" else "trained from"
    return program_asset(
        ["family", name],
        "tts_assets.external_models.train",
        plan,
        shape=environment.shape,
        limit=Shape.one_process,
        ins={"samples": filtered_samples_of(recipe.corpora)},
        code_version=CODE_VERSION,
        group_name=GROUP,
        kinds={"model", "pytorch"},
        description=f"{recipe.family} {verb} {start} on {', '.join(recipe.corpora)}, by coqui-tts.",
    )


def synthesis_asset(
    name: str,
    recipe: ExternalRecipe,
    suite_name: str,
    evaluation: EvaluationConfig,
    environment: Environment,
) -> AssetsDefinition:
    """``spoken/<recipe>`` or ``spoken/<recipe>/<suite>``: the suite as the model synthesizes it."""

    def plan(
        request: Request, model: ExternalModel, suite: EvaluationSuite
    ) -> Plan[SynthesizedSuite]:
        found = environment.consents(name, corpora_behind(request.store, model))
        agreed = check_use(found, f"{name} may not speak", request.store)
        return Plan(
            {"seeds": evaluation.seeds, "consents": agreed},
            program=lambda work: ExternalSynthesisProgram(
                run_dir=work,
                name=name,
                family=recipe.family,
                python=environment.python,
                model=model.path,
                suite=suite.path / SUITE_FILE,
                suite_name=suite_name,
                language=evaluation.language,
                seeds=evaluation.seeds,
                provenance=statement(f"family/{name}", people(agreed)),
            ),
        )

    return program_asset(
        synthesized_key(name, suite_name).path,
        "tts_assets.external_models.synthesize",
        plan,
        shape=environment.shape,
        limit=Shape.one_process,
        ins={"model": AssetIn(AssetKey(["family", name])), "suite": AssetIn(suite_key(suite_name))},
        code_version=CODE_VERSION,
        group_name=group_of("external_syntheses", name, suite_name != MAIN),
        kinds={"synthesis", "flac"},
        description=f"Every text of the suite, synthesized by {name}.",
    )


def table_asset(config: ExternalModelsConfig, speechlm: Mapping[str, str]) -> AssetsDefinition:
    """``model_families``: a table of all recipes, which includes those without a model."""
    recipes = {name: ModelSource("speechlm", stage) for name, stage in speechlm.items()}
    recipes |= {name: ModelSource(r.family, "family") for name, r in config.recipes.items()}

    def plan(request: Request) -> Plan[ExternalModelsTable]:
        rows = [row(request.store, n, source, config.notes) for n, source in recipes.items()]
        return Plan(
            {"rows": rows},
            lambda work: write(work / "result", rows),
            describe=describe_table,
        )

    return artifact_asset(
        "model_families",
        plan,
        code_version=CODE_VERSION,
        deps=[AssetDep(report_key(name)) for name in recipes],
        group_name=GROUP,
        kinds={"table", "markdown"},
        description="All recipes, external ones included: status, runs, best metrics, notes.",
    )
