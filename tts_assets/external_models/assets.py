"""Other model families as Dagster sees them: ``family/<recipe>``, what it said of each suite,
``spoken/<recipe>``, and the table of all families, ``model_families``."""

from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from dagster import (
    AssetDep,
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.core.artifacts import (
    Build,
    EvaluationSuite,
    ExternalModel,
    ExternalModelsTable,
    SynthesizedSuite,
    sha256_file,
)
from tts_assets.core.audio import statement
from tts_assets.core.compute import Shape
from tts_assets.core.plots import curves
from tts_assets.core.program import METRICS_FILE, read_metrics
from tts_assets.core.split import ValidationSplit
from tts_assets.corpora.config import VoiceConsent, check_consents, people
from tts_assets.corpora.filter import KEPT_FILE
from tts_assets.evaluation.assets import report_key, spoken_key, suite_key
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.suite import SUITE_FILE
from tts_assets.external_models import table
from tts_assets.external_models.config import (
    ExternalModelsConfig,
    ExternalRecipe,
    ExternalSynthesisProgram,
    ExternalTrainProgram,
)
from tts_assets.orchestration.launchpad import Machines
from tts_assets.orchestration.partitions import filtered_samples_of

CODE_VERSION = "2"
Consents = Callable[[str], Mapping[str, VoiceConsent | None]]
LOSSES: dict[str, dict[str, str]] = {  # by coqui's names, in the order of interest
    "vits": {"loss_mel": "mel", "val_loss_mel": "mel, validation", "loss_duration": "duration"},
    "xtts": {
        "loss_text_ce": "text",
        "val_loss_text_ce": "text, validation",
        "loss_mel_ce": "mel",
        "val_loss_mel_ce": "mel, validation",
    },
}


def build_assets(
    families: ExternalModelsConfig,
    evaluation: EvaluationConfig,
    validation: ValidationSplit,
    speechlm: Mapping[str, str],
    shape: Shape,
    root: Path,
    consents: Consents,
) -> list[AssetsDefinition]:
    """``speechlm``: recipes of our own family, and the stage of each."""
    if not families.recipes:
        return []
    assert families.python is not None  # the configuration has checked
    python = root / families.python
    built = []
    for name, recipe in families.recipes.items():
        built.append(family_asset(name, recipe, python, validation, shape, root, consents))
        for suite in evaluation.suites_of(name):
            given = evaluation.for_suite(suite)
            built.append(spoken_asset(name, recipe, python, suite, given, shape, consents))
    return [*built, table_asset(families, speechlm)]


def family_asset(
    name: str,
    recipe: ExternalRecipe,
    python: Path,
    validation: ValidationSplit,
    shape: Shape,
    root: Path,
    consents: Consents,
) -> AssetsDefinition:
    given = recipe if recipe.model is None else recipe.with_model(root / recipe.model)

    @asset(
        key=["family", name],
        group_name="families",
        ins={"samples": filtered_samples_of(recipe.corpora)},
        code_version=CODE_VERSION,
        kinds={"pytorch"},
        description=describe_recipe(recipe),
    )
    def model(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        samples: Any,
    ) -> Output[ExternalModel]:
        check_consents(consents(name), f"family/{name} is not published", date.today())
        known = {
            "recipe": recipe.model_dump(mode="json", exclude={"model"}),
            "weights": weights_digests(given.model),
            "validation": validation,
        }
        build = Build(f"family/{name}", {"samples": samples}, known, CODE_VERSION, recipe.seed)

        def run(work: Path) -> dict[str, Any]:
            program = ExternalTrainProgram(
                run_dir=work,
                name=name,
                python=python,
                recipe=given,
                samples={corpus: kept.path / KEPT_FILE for corpus, kept in samples.items()},
                validation=validation,
            )
            module = "tts_assets.external_models.train"
            machines = config.of(shape).one_process()
            return launcher.run(context, Program(module, program, machines)).facts

        return store.materialize(context, ExternalModel, build, run, describe_model)

    return model


def spoken_asset(
    name: str,
    recipe: ExternalRecipe,
    python: Path,
    suite_name: str,
    evaluation: EvaluationConfig,
    shape: Shape,
    consents: Consents,
) -> AssetsDefinition:
    key = spoken_key(name, suite_name)

    @asset(
        key=key,
        group_name="families",
        ins={
            "model": AssetIn(key=AssetKey(["family", name])),
            "suite": AssetIn(key=suite_key(suite_name)),
        },
        code_version=CODE_VERSION,
        kinds={"flac"},
        description=f"Every text of the suite as {name} says it.",
    )
    def spoken(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        model: ExternalModel,
        suite: EvaluationSuite,
    ) -> Output[SynthesizedSuite]:
        agreed = check_consents(consents(name), f"{name} may not speak", date.today())
        known = {"seeds": evaluation.seeds, "consents": agreed}
        inputs = {"model": model, "suite": suite}
        build = Build("/".join(key.path), inputs, known, CODE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            program = ExternalSynthesisProgram(
                run_dir=work,
                name=name,
                family=recipe.family,
                python=python,
                model=model.path,
                suite=suite.path / SUITE_FILE,
                suite_name=suite_name,
                language=evaluation.language,
                seeds=evaluation.seeds,
                provenance=statement(f"family/{name}", people(agreed)),
            )
            module = "tts_assets.external_models.speak"
            machines = config.of(shape).one_process()
            return launcher.run(context, Program(module, program, machines)).facts

        return store.materialize(context, SynthesizedSuite, build, run)

    return spoken


def table_asset(families: ExternalModelsConfig, speechlm: Mapping[str, str]) -> AssetsDefinition:
    """Reads what was published: it is there before the last model is."""
    recipes = {name: table.Known("speechlm", stage) for name, stage in speechlm.items()}
    recipes |= {name: table.Known(r.family, "family") for name, r in families.recipes.items()}

    @asset(
        key="model_families",
        group_name="families",
        deps=[AssetDep(report_key(name)) for name in recipes],
        code_version=CODE_VERSION,
        kinds={"markdown"},
        description="Every recipe of every family: status, runs, best figures, notes.",
    )
    def model_families(
        context: AssetExecutionContext, store: ArtifactStoreResource
    ) -> Output[ExternalModelsTable]:
        rows = [table.row(store.store, name, recipes[name], families.notes) for name in recipes]
        build = Build("model_families", {}, {"rows": rows}, CODE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            return table.write(work / "result", rows)

        def describe(made: ExternalModelsTable) -> dict[str, Any]:
            return {"table": MetadataValue.md((made.path / table.TABLE_FILE).read_text())}

        return store.materialize(context, ExternalModelsTable, build, run, describe)

    return model_families


def weights_digests(folder: Path | None) -> dict[str, str]:
    """SHA-256 of every file of coqui's published weights, by name."""
    if folder is None:
        return {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def describe_recipe(recipe: ExternalRecipe) -> str:
    start = "published weights" if recipe.model else "random weights"
    what = "taken over from" if recipe.family == "tortoise" else "trained from"
    return f"{recipe.family} {what} {start} on {', '.join(recipe.corpora)}, by coqui-tts."


def describe_model(model: ExternalModel) -> dict[str, Any]:
    """The losses as curves; nothing of a family that is not trained."""
    path, lines = model.path / METRICS_FILE, LOSSES.get(model.facts.family)
    if not path.is_file() or lines is None:
        return {}
    picture = curves(read_metrics(path), [lines], x_label="step")
    return {"losses": MetadataValue.md(f"![losses]({picture})")}
