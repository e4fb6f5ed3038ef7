"""Evaluation as Dagster sees it: suites, ``report/<recipe>`` and ``comparison/<name>``.

The suite of ``[evaluation]`` is ``evaluation_suite``, its reports ``report/<recipe>``; one of
``[evaluation.suites.<name>]`` is ``suite/<name>``, and ``report/<recipe>/<name>``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import (
    AssetChecksDefinition,
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
    Comparison,
    EvaluationSuite,
    Report,
    SpeakerEncoderCheckpoint,
    sha256_file,
)
from tts_assets.core.compute import Shape
from tts_assets.core.hub import identity
from tts_assets.core.notebook import NOTEBOOK_FILE
from tts_assets.core.plots import bars
from tts_assets.evaluation.checks import TrainedOn, report_checks
from tts_assets.evaluation.config import (
    MAIN,
    ComparisonConfig,
    EvaluationConfig,
    EvaluationProgram,
)
from tts_assets.evaluation.corpus_voices import expected_rate, named_speakers, reference_clips
from tts_assets.evaluation.history import earlier_reports, measured, measured_differently
from tts_assets.evaluation.lineage import lineage
from tts_assets.evaluation.suite import SUITE_FILE, audio_digests, read_suite, write_suite
from tts_assets.orchestration.launchpad import Machines
from tts_assets.orchestration.partitions import code_arrays_of
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.sft.config import SftRecipe
from tts_assets.speakers.assets import encoder_input, encoder_path
from tts_assets.speakers.config import RESEMBLYZER, encoder_digest

SUITE_VERSION = "1"
CODE_VERSION = "4"
COMPARISON_VERSION = "5"
Built = AssetsDefinition | AssetChecksDefinition


@dataclass(frozen=True)
class Examined:
    """A recipe whose serving model says the suites; ``corpora``: whose voice it should have;
    ``learnt``: what the suites must not hold; ``spoken``: it is of another family, and has said
    them."""

    name: str
    corpora: tuple[str, ...]
    learnt: TrainedOn
    spoken: bool = False

    def speaks(self, suite: str) -> AssetKey:
        """What a report listens to."""
        return spoken_key(self.name, suite) if self.spoken else AssetKey(["serving", self.name])


def build_assets(
    evaluation: EvaluationConfig,
    sft: Mapping[str, SftRecipe],
    rlhf: Mapping[str, RlhfRecipe],
    root: Path,
    shape: Shape,
    learnt_from: Callable[[str], Collection[str]],
    families: Mapping[str, Sequence[str]] | None = None,
) -> list[Built]:
    """The suites, a report for every recipe on each, a comparison of every RLHF recipe with its
    base, and those that the configuration names.

    ``root``: the folder that relative paths of the configuration start from; ``learnt_from``: the
    corpora of a recipe and of those before it; ``families``: recipes of other families, and their
    corpora.
    """
    examined = [
        Examined(name, tuple(recipe.corpora), TrainedOn(learnt_from(name)))
        for name, recipe in sft.items()
    ]
    for name, aligned in rlhf.items():
        learnt = TrainedOn(
            learnt_from(aligned.base),
            (root / aligned.prompts.texts,) if aligned.prompts.texts else (),
            aligned.prompts.corpora,
            aligned.prompts.corpora if aligned.prompts.voice_prompts else (),
        )
        examined.append(Examined(name, tuple(sft[aligned.base].corpora), learnt))
    for name, corpora in (families or {}).items():
        examined.append(Examined(name, tuple(corpora), TrainedOn(corpora), spoken=True))
    built: list[Built] = []
    for suite in (MAIN, *evaluation.suites):
        built.append(suite_asset(suite, evaluation.for_suite(suite), root))
        for recipe in examined:
            if suite in evaluation.suites_of(recipe.name):
                built += report_assets(recipe, suite, evaluation.for_suite(suite), root, shape)
    for name, aligned in rlhf.items():
        pair = ComparisonConfig(models=(aligned.base, name))
        built.append(comparison_asset(name, pair, evaluation))
    for name, comparison in evaluation.comparisons.items():
        built.append(comparison_asset(name, comparison, evaluation))
    return built


def suite_key(suite: str) -> AssetKey:
    return AssetKey("evaluation_suite") if suite == MAIN else AssetKey(["suite", suite])


def report_key(recipe: str, suite: str = MAIN) -> AssetKey:
    return AssetKey(["report", recipe] if suite == MAIN else ["report", recipe, suite])


def spoken_key(recipe: str, suite: str = MAIN) -> AssetKey:
    return AssetKey(["spoken", recipe] if suite == MAIN else ["spoken", recipe, suite])


def suite_asset(name: str, evaluation: EvaluationConfig, root: Path) -> AssetsDefinition:
    source = root / evaluation.suite

    @asset(
        key=suite_key(name),
        group_name="evaluation",
        code_version=SUITE_VERSION,
        kinds={"json"},
        description="Fixed texts that models are asked to say, in categories"
        + ("." if name == MAIN else f": {evaluation.suite.name}."),
    )
    def suite(
        context: AssetExecutionContext, store: ArtifactStoreResource
    ) -> Output[EvaluationSuite]:
        texts = read_suite(source, evaluation.language)
        config: dict[str, Any] = {
            "source": sha256_file(source),
            "language": evaluation.language,
        }
        if audio := audio_digests(texts):
            config["audio"] = audio
        asset_name = "/".join(suite_key(name).path)
        build = Build(asset_name, {}, config, SUITE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            write_suite(work / "result" / SUITE_FILE, texts)
            names = [text.category for text in texts]
            counts = {category: names.count(category) for category in dict.fromkeys(names)}
            return {"texts": len(texts), "categories": counts}

        return store.materialize(context, EvaluationSuite, build, run)

    return suite


def report_assets(
    recipe: Examined, suite_name: str, evaluation: EvaluationConfig, root: Path, shape: Shape
) -> list[Built]:
    """``report/<recipe>`` or ``report/<recipe>/<suite>``, and its checks."""
    name = recipe.name
    key = report_key(name, suite_name)
    on_suite = "" if suite_name == MAIN else f" on the suite {suite_name}"

    @asset(
        key=key,
        group_name="evaluation",
        ins={
            "serving": AssetIn(key=recipe.speaks(suite_name)),
            "suite": AssetIn(key=suite_key(suite_name)),
            "arrays": code_arrays_of(evaluation.target or recipe.corpora),
            **encoder_input(evaluation.speaker_encoder),
        },
        code_version=CODE_VERSION,
        kinds={"html", "whisper"},
        description=f"What {name} sounds like{on_suite}: word errors, naturalness, likeness, "
        "players.",
    )
    def report(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        serving: Any,  # a ServingModel or a SpokenSuite
        suite: EvaluationSuite,
        arrays: Any,
        **encoder: SpeakerEncoderCheckpoint,
    ) -> Output[Report]:
        inputs = {"serving": serving, "suite": suite, "arrays": arrays, **encoder}
        # What was said elsewhere was said at one temperature.
        asked = evaluation.model_copy(update={"temperatures": ()} if recipe.spoken else {})
        given, known = determined(asked, encoder, root)
        build = Build("/".join(key.path), inputs, known, CODE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            texts = read_suite(suite.path / SUITE_FILE, given.language)
            program = EvaluationProgram(
                run_dir=work,
                name=name,
                suite_name=suite_name,
                evaluation=given,
                **{"spoken" if recipe.spoken else "serving_model": serving.path},
                suite=suite.path / SUITE_FILE,
                references=reference_clips(arrays, given.references),
                speakers=named_speakers(arrays, texts, given.references),
                characters_per_second=expected_rate(arrays, given.language),
                cache=store.store.cache("evaluation"),
                lineage=lineage(store.store, [suite, *arrays.values(), *encoder.values(), serving]),
                earlier=earlier_reports(store.store, build),
            )
            module = "tts_assets.evaluation.evaluate"
            return launcher.run(context, Program(module, program, config.of(shape))).facts

        return store.materialize(context, Report, build, run, describe_report)

    return [
        report,
        *report_checks(
            report, suite_key(suite_name), recipe.learnt.of_suite(suite_name), evaluation
        ),
    ]


def determined(
    evaluation: EvaluationConfig, encoder: Mapping[str, SpeakerEncoderCheckpoint], root: Path
) -> tuple[EvaluationConfig, dict[str, Any]]:
    """The configuration with the models that it names found, and what of it decides a report's
    bytes, free of paths."""
    from tts_assets.evaluation.metrics.registry import metrics_of

    given, digests = evaluation, {}
    if evaluation.speaker_encoder != RESEMBLYZER:
        path = encoder_path(evaluation.speaker_encoder, encoder, root)
        given = given.model_copy(update={"speaker_encoder": str(path)})
        digests["speaker_encoder"] = encoder_digest(path)
    if evaluation.utmos is not None:
        utmos = root / evaluation.utmos
        given = given.model_copy(update={"utmos": utmos})
        if utmos.is_file():
            digests["utmos"] = sha256_file(utmos)
    digests["whisper"] = identity(evaluation.whisper)
    versions = {metric.name: metric.version for metric in metrics_of(given)}
    return given, given.determining() | {"versions": versions} | digests


def comparison_asset(
    name: str, comparison: ComparisonConfig, evaluation: EvaluationConfig
) -> AssetsDefinition:
    models = comparison.models

    @asset(
        key=["comparison", name],
        group_name="evaluation",
        ins={
            f"report_{place}": AssetIn(key=report_key(model)) for place, model in enumerate(models)
        },
        code_version=COMPARISON_VERSION,
        kinds={"html"},
        description=f"{', '.join(models)} side by side, with paired bootstrap intervals, and a "
        "blind test of them.",
    )
    def compared(
        context: AssetExecutionContext, store: ArtifactStoreResource, **inputs: Any
    ) -> Output[Comparison]:
        reports = {model: inputs[f"report_{place}"] for place, model in enumerate(models)}
        config = {"models": models, "blind_trials": comparison.blind_trials}
        build = Build(f"comparison/{name}", reports, config, COMPARISON_VERSION)

        def run(work: Path) -> dict[str, Any]:
            from tts_assets.evaluation.compare import compare

            return compare(
                {model: report.path for model, report in reports.items()},
                evaluation,
                lineage(store.store, reports.values()),
                work / "result",
                comparison.blind_trials,
                measured_differently(measured(report) for report in reports.values()),
            )

        return store.materialize(context, Comparison, build, run, describe_comparison)

    return compared


def describe_report(report: Report) -> dict[str, Any]:
    """Where to read and hear it, and its word errors as a picture."""
    from tts_assets.evaluation.report import PAGE_FILE

    picture = bars(report.facts.wer_by_category, x_label="word errors, %")
    return {
        "listen": MetadataValue.notebook(str(report.path / NOTEBOOK_FILE)),
        "page": MetadataValue.path(str(report.path / PAGE_FILE)),
        "word_errors": MetadataValue.md(f"![word errors]({picture})"),
    }


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """Where to read, hear and vote, and the summary in words."""
    from tts_assets.evaluation.blind_test import BLIND_PAGE_FILE
    from tts_assets.evaluation.compare import PAGE_FILE, SUMMARY_FILE

    return {
        "listen": MetadataValue.notebook(str(comparison.path / NOTEBOOK_FILE)),
        "page": MetadataValue.path(str(comparison.path / PAGE_FILE)),
        "blind_test": MetadataValue.path(str(comparison.path / BLIND_PAGE_FILE)),
        "summary": MetadataValue.md((comparison.path / SUMMARY_FILE).read_text()),
    }
