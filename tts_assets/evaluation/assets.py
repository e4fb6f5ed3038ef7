"""Dagster assets of evaluation: suites, ``report/<recipe>`` and ``comparison/<name>``.

The suite of ``[evaluation]`` is ``evaluation_suite``; its reports are ``report/<recipe>``. A suite
of ``[evaluation.suites.<name>]`` is ``suite/<name>``; its reports are ``report/<recipe>/<name>``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from dagster import AssetChecksDefinition, AssetIn, AssetKey, AssetsDefinition

from tts_assets.core.artifacts import (
    ArtifactStore,
    Build,
    CodeArrays,
    Comparison,
    EvaluationSuite,
    Report,
    ServingModel,
    SpeakerEncoderCheckpoint,
    SynthesizedSuite,
)
from tts_assets.core.compute import Shape
from tts_assets.evaluation.checks import report_checks
from tts_assets.evaluation.config import (
    MAIN,
    EvaluationConfig,
    EvaluationProgram,
    PlannedComparison,
    planned_comparisons,
)
from tts_assets.evaluation.recipes import (
    EvaluatedRecipe,
    ReportInputs,
    determined,
    evaluated_recipes,
    report_program,
)
from tts_assets.evaluation.results import describe_comparison, describe_report
from tts_assets.evaluation.suite import SUITE_FILE, known_of_suite, read_suite, write_suite
from tts_assets.orchestration.dependencies import code_arrays_of
from tts_assets.orchestration.program_asset import (
    Plan,
    Request,
    artifact_asset,
    group_of,
    program_asset,
)
from tts_assets.rlhf.assets import preferences_asset
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.rlhf.dpo_config import DpoRecipe, PairSource, PreferencesConfig
from tts_assets.sft.config import SftRecipe
from tts_assets.speakers.assets import encoder_input

SUITE_VERSION = "1"
CODE_VERSION = "9"
COMPARISON_VERSION = "9"
Built = AssetsDefinition | AssetChecksDefinition


def build_assets(
    evaluation: EvaluationConfig,
    sft: Mapping[str, SftRecipe],
    rlhf: Mapping[str, RlhfRecipe | DpoRecipe],
    root: Path,
    shape: Shape,
    trained_on: Callable[[str], Collection[str]],
    external: Mapping[str, Sequence[str]] | None = None,
    suites: Mapping[str, Sequence[str]] | None = None,
    decisive: Mapping[str, Sequence[str]] | None = None,
) -> list[Built]:
    """The suites, reports of every recipe, and comparisons.

    Every recipe of ``rlhf``, of GRPO and DPO, has a comparison with its base; the configuration may
    name further ones. ``suites``: those of each recipe, its main suite first (:func:`suites_for`);
    None: all that the configuration has. ``decisive``: by recipe, the categories that its promotion
    looks at. See :func:`evaluated_recipes` for the other parameters.
    """
    recipes = evaluated_recipes(sft, rlhf, root, trained_on, external or {})
    built: list[Built] = []
    for suite in (MAIN, *evaluation.suites):
        config = evaluation.for_suite(suite)
        built.append(suite_asset(suite, config, root))
        for recipe in recipes:
            asked = (suites or {}).get(recipe.name) or evaluation.suites_of(recipe.name)
            if suite in asked:
                key = report_key(recipe.name, MAIN if suite == asked[0] else suite)
                report = report_asset(key, recipe, suite, config, root, shape)
                training_data = recipe.training_data.for_suite(suite)
                built += [report, *report_checks(report, suite_key(suite), training_data, config)]
    aligned = {name: recipe.base for name, recipe in rlhf.items()}
    for one in planned_comparisons(evaluation, aligned, suites or {}, decisive or {}):
        built.append(comparison_asset(one))
    return built


def suite_key(suite: str) -> AssetKey:
    """The asset of a suite."""
    return AssetKey("evaluation_suite") if suite == MAIN else AssetKey(["suite", suite])


def report_key(recipe: str, suite: str = MAIN) -> AssetKey:
    """The report of a recipe on a suite."""
    return AssetKey(["report", recipe] if suite == MAIN else ["report", recipe, suite])


def synthesized_key(recipe: str, suite: str = MAIN) -> AssetKey:
    """A suite as an external model synthesizes it."""
    return AssetKey(["spoken", recipe] if suite == MAIN else ["spoken", recipe, suite])


def suite_asset(name: str, evaluation: EvaluationConfig, root: Path) -> AssetsDefinition:
    """``evaluation_suite`` or ``suite/<name>``: the checked texts with their audio."""
    source = root / evaluation.suite

    def plan(request: Request) -> Plan[EvaluationSuite]:
        texts = read_suite(source, evaluation.language)
        known = known_of_suite(source, evaluation.language, texts)
        return Plan(known, lambda work: write_suite(work / "result" / SUITE_FILE, texts))

    return artifact_asset(
        suite_key(name).path,
        plan,
        code_version=SUITE_VERSION,
        group_name="suites",
        kinds={"suite", "json"},
        description="Fixed texts, in categories, that models synthesize"
        + ("." if name == MAIN else f": {evaluation.suite.name}."),
    )


def report_asset(
    key: AssetKey,
    recipe: EvaluatedRecipe,
    suite_name: str,
    evaluation: EvaluationConfig,
    root: Path,
    shape: Shape,
) -> AssetsDefinition:
    """``report/<recipe>`` (on the main suite of the recipe) or ``report/<recipe>/<suite>``."""
    # The clips of external models exist at one temperature only.
    asked = evaluation.model_copy(update={"temperatures": ()} if recipe.external else {})

    def plan(
        request: Request,
        serving: ServingModel | SynthesizedSuite,
        suite: EvaluationSuite,
        arrays: Mapping[str, CodeArrays],
        encoder: SpeakerEncoderCheckpoint | None = None,
    ) -> Plan[Report]:
        config, known = determined(asked, encoder.path if encoder else None, root)
        inputs = ReportInputs(serving, suite, arrays, encoder)
        build = Build("/".join(key.path), inputs.by_name(), known, CODE_VERSION)

        def program(work: Path) -> EvaluationProgram:
            return report_program(work, recipe, suite_name, config, inputs, build, request.store)

        return Plan(known, program=program, inputs=inputs.by_name(), describe=describe_report)

    source = (
        synthesized_key(recipe.name, suite_name)
        if recipe.external
        else AssetKey(["serving", recipe.name])
    )
    return program_asset(
        key.path,
        "tts_assets.evaluation.evaluate",
        plan,
        shape=shape,
        ins={
            "serving": AssetIn(source),
            "suite": AssetIn(suite_key(suite_name)),
            "arrays": code_arrays_of(evaluation.reference_corpora or recipe.corpora),
            **encoder_input(evaluation.speaker_encoder),
        },
        code_version=CODE_VERSION,
        group_name=group_of("reports", recipe.name, len(key.path) > 2),
        kinds={"report", "html", "whisper"},
        description=f"Evaluation of {recipe.name}"
        + ("" if suite_name == MAIN else f" on the suite {suite_name}")
        + ": WER, DNSMOS, speaker similarity and further metrics, with players.",
    )


def comparison_asset(asked: PlannedComparison) -> AssetsDefinition:
    """``comparison/<name>`` of the models' reports."""
    models = tuple(asked.suites)
    reports_of = {f"report_{index}": model for index, model in enumerate(models)}

    def plan(request: Request, **inputs: Report) -> Plan[Comparison]:
        from tts_assets.evaluation.compare import comparison_of_reports

        reports = {model: inputs[parameter] for parameter, model in reports_of.items()}

        known = {"models": models, "blind_trials": asked.blind_trials}
        known |= {"decisive": asked.decisive} if asked.decisive else {}
        make = partial(comparison_of_reports, request.store, asked, reports)
        return Plan(known, make, inputs=reports, describe=describe_comparison)

    return artifact_asset(
        ["comparison", asked.name],
        plan,
        code_version=COMPARISON_VERSION,
        ins={
            parameter: AssetIn(report_key(model, asked.suites[model]))
            for parameter, model in reports_of.items()
        },
        group_name="comparisons",
        kinds={"comparison", "html"},
        description=f"Comparison of {', '.join(models)}: paired differences with bootstrap "
        "intervals, clips side by side, and a blind test.",
    )


def vote_preferences(name: str, config: PreferencesConfig, shape: Shape, root: Path) -> list[Built]:
    """``preferences/<name>`` from the votes of a blind test, with its check.

    Votes of earlier versions of the comparison count, if its reports and models are still stored.
    """

    def read(store: ArtifactStore, comparison: Comparison, suite: EvaluationSuite) -> PairSource:
        from tts_assets.evaluation.blind_test import voted_pairs

        return voted_pairs(store, comparison.asset, config.vote_files(root), suite)

    ins = {
        "comparison": AssetIn(AssetKey(["comparison", config.comparison])),
        "suite": AssetIn(suite_key(MAIN)),
    }
    return preferences_asset(name, read, ins, shape, f"votes of comparison/{config.comparison}")
