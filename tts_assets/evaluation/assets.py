"""Evaluation as Dagster sees it: the suite, ``report/<recipe>`` and ``comparison/<recipe>``."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.artifacts import (
    Build,
    CodeArrays,
    Comparison,
    EvaluationSuite,
    Report,
    ServingModel,
    sha256_file,
)
from tts_assets.compute import Shape
from tts_assets.evaluation.config import EvaluationConfig, EvaluationProgram
from tts_assets.evaluation.lineage import lineage
from tts_assets.evaluation.suite import SUITE_FILE, known_texts, read_suite, write_suite
from tts_assets.partitions import code_arrays_of
from tts_assets.plots import bars
from tts_assets.rlhf.config import RlhfRecipe
from tts_assets.sft.config import SftRecipe
from tts_assets.speakers.source import encoder_digest, resolve

CODE_VERSION = "1"
Built = AssetsDefinition | AssetChecksDefinition


def build_assets(
    evaluation: EvaluationConfig,
    sft: Mapping[str, SftRecipe],
    rlhf: Mapping[str, RlhfRecipe],
    root: Path,
    shape: Shape,
) -> list[Built]:
    """The suite, a report for every recipe, and a comparison of every RLHF recipe with its base.

    ``root``: the folder that relative paths of the configuration start from.
    """
    built: list[Built] = [suite_asset(evaluation, root)]
    for name, recipe in sft.items():
        built += report_assets(name, recipe.corpora, [], evaluation, root, shape)
    for name, aligned in rlhf.items():
        prompts = [root / aligned.prompts.texts] if aligned.prompts.texts else []
        corpora = sft[aligned.base].corpora
        built += report_assets(name, corpora, prompts, evaluation, root, shape)
        built.append(comparison_asset(name, aligned.base, evaluation))
    return built


def suite_asset(evaluation: EvaluationConfig, root: Path) -> AssetsDefinition:
    source = root / evaluation.suite

    @asset(
        group_name="evaluation",
        code_version=CODE_VERSION,
        kinds={"json"},
        description="The fixed texts that every model is asked to say, in categories.",
    )
    def evaluation_suite(
        context: AssetExecutionContext, store: ArtifactStoreResource
    ) -> Output[EvaluationSuite]:
        texts = read_suite(source, evaluation.language)
        config = {"source": sha256_file(source), "language": evaluation.language}
        build = Build("evaluation_suite", {}, config, CODE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            write_suite(work / "result" / SUITE_FILE, texts)
            names = [text.category for text in texts]
            counts = {category: names.count(category) for category in dict.fromkeys(names)}
            return {"texts": len(texts), "categories": counts}

        return store.materialize(context, EvaluationSuite, build, run)

    return evaluation_suite


def report_assets(
    name: str,
    corpora: Iterable[str],
    prompts: list[Path],
    evaluation: EvaluationConfig,
    root: Path,
    shape: Shape,
) -> list[Built]:
    """``report/<name>`` and its checks. ``prompts``: files of texts that RLHF trained on."""

    @asset(
        key=["report", name],
        group_name="evaluation",
        ins={
            "serving": AssetIn(key=AssetKey(["serving", name])),
            "suite": AssetIn(key="evaluation_suite"),
            "arrays": code_arrays_of(corpora),
        },
        code_version=CODE_VERSION,
        kinds={"html", "whisper"},
        description=f"What {name} sounds like: word errors, naturalness, likeness, players.",
    )
    def report(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        serving: ServingModel,
        suite: EvaluationSuite,
        arrays: Any,
    ) -> Output[Report]:
        inputs = {"serving": serving, "suite": suite, "arrays": arrays}
        config = evaluation.model_dump(mode="json", exclude={"suite"})
        encoder = resolve(evaluation.speaker_encoder, root)
        config["speaker_encoder"] = encoder_digest(encoder)
        build = Build(f"report/{name}", inputs, config, CODE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            program = EvaluationProgram(
                run_dir=work,
                name=name,
                evaluation=evaluation.model_copy(update={"speaker_encoder": str(encoder)}),
                serving_model=serving.path,
                suite=suite.path / SUITE_FILE,
                references=reference_clips(arrays, evaluation.references),
                lineage=lineage(store.store, [suite, *arrays.values(), serving]),
            )
            module = "tts_assets.evaluation.evaluate"
            return launcher.run(context, Program(module, program, shape)).facts

        return store.materialize(context, Report, build, run, describe_report)

    return [report, *report_checks(report, name, corpora, prompts, evaluation)]


def report_checks(
    report: AssetsDefinition,
    name: str,
    corpora: Iterable[str],
    prompts: list[Path],
    evaluation: EvaluationConfig,
) -> list[AssetChecksDefinition]:
    suite_in = AssetIn(key="evaluation_suite")

    @asset_check(
        asset=report,
        additional_ins={"suite": suite_in},
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

    @asset_check(
        asset=report,
        additional_ins={"suite": suite_in, "arrays": code_arrays_of(corpora)},
        blocking=True,
        description="No text of the suite was trained on.",
    )
    def suite_is_held_out(report: Report, suite: EvaluationSuite, arrays: Any) -> AssetCheckResult:
        trained = [sample["transcript"] for sample in samples_of(arrays, "train")]
        trained += [line for path in prompts for line in read_lines(path)]
        known = known_texts(suite_texts(suite, evaluation), trained, evaluation.language)
        return AssetCheckResult(
            passed=not known,
            metadata={"trained_on": len(trained), "known": [text.id for text in known]},
        )

    return [every_text_is_accounted_for, suite_is_held_out]


def comparison_asset(
    name: str, baseline_name: str, evaluation: EvaluationConfig
) -> AssetsDefinition:
    @asset(
        key=["comparison", name],
        group_name="evaluation",
        ins={
            "baseline": AssetIn(key=AssetKey(["report", baseline_name])),
            "candidate": AssetIn(key=AssetKey(["report", name])),
        },
        code_version=CODE_VERSION,
        kinds={"html"},
        description=f"{baseline_name} and {name} side by side, with a paired bootstrap interval.",
    )
    def comparison(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        baseline: Report,
        candidate: Report,
    ) -> Output[Comparison]:
        inputs = {"baseline": baseline, "candidate": candidate}
        build = Build(f"comparison/{name}", inputs, {}, CODE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            from tts_assets.evaluation.compare import compare

            return compare(
                baseline.path,
                candidate.path,
                (baseline_name, name),
                evaluation.language,
                lineage(store.store, [baseline, candidate]),
                work / "result",
            )

        return store.materialize(context, Comparison, build, run, describe_comparison)

    return comparison


def reference_clips(arrays: Mapping[str, CodeArrays], count: int) -> tuple[Path, ...]:
    """The longest validation clips (training clips where there are none): the speaker's voice."""
    samples = samples_of(arrays, "val") or samples_of(arrays, "train")
    longest = sorted(samples, key=lambda sample: (-sample["duration"], sample["id"]))[:count]
    clips = tuple(Path(sample["wav_path"]) for sample in longest)
    for clip in clips:
        if not clip.is_file():
            raise FileNotFoundError(
                f"{clip}, a clip of code_arrays, is gone: put it back, or materialize raw_corpus "
                "and what follows again"
            )
    return clips


def samples_of(arrays: Mapping[str, CodeArrays], split: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for handle in arrays.values()
        for line in read_lines(handle.path / f"{split}_samples.jsonl")
    ]


def suite_texts(suite: EvaluationSuite, evaluation: EvaluationConfig) -> list[Any]:
    return list(read_suite(suite.path / SUITE_FILE, evaluation.language))


def read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip()]


def describe_report(report: Report) -> dict[str, Any]:
    """Where to read and hear it, and its word errors as a picture."""
    from tts_assets.evaluation.report import NOTEBOOK_FILE, PAGE_FILE

    total = json.loads((report.path / "report.json").read_text())["total"]
    picture = bars(report.facts.wer_by_category, x_label="word errors, %")
    numbers = ("wer_low", "wer_high", "cer", "perfect", "dnsmos_overall", "unscored", "cut_off")
    return {
        "listen": MetadataValue.notebook(str(report.path / NOTEBOOK_FILE)),
        "page": MetadataValue.path(str(report.path / PAGE_FILE)),
        "word_errors": MetadataValue.md(f"![word errors]({picture})"),
        **{name: total[name] for name in numbers},
    }


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    from tts_assets.evaluation.compare import PAGE_FILE

    return {"page": MetadataValue.path(str(comparison.path / PAGE_FILE))}
