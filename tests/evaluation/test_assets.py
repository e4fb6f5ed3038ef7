"""Suite, reports and comparison in Dagster runs: lineage, checks, reuse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from dagster import (
    AssetKey,
    AssetSpec,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    define_asset_job,
    in_process_executor,
)

from resources.artifact_store import FILES_URL, ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from tests.support.speaking import Speaking
from tts_assets.core.artifacts import UNPARTITIONED, Build, Handle
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.evaluation.assets import build_assets
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.evaluation.history import lineage
from tts_assets.evaluation.recipes import expected_rate, reference_clips, references_digest
from tts_assets.evaluation.results import read_references_digest, read_samples
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.settings import load_settings
from tts_assets.sft.config import SftRecipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "suites"
GIVEN = {"suite": "suite.jsonl", "reference_clips": 1, "window_seconds": 5}
CHECKS = {"every_text_is_accounted_for", "suite_is_held_out", "metrics_did_not_fail"}


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        ephemeral.add_dynamic_partitions("corpus", ["clips"])
        yield ephemeral


def run(
    instance: DagsterInstance,
    speaking: Speaking,
    folder: Path,
    texts: list[str],
    select: Sequence[str] = ("evaluation_suite", "report/tiny"),
    recipes: Sequence[str] = ("tiny",),
    **options: object,
) -> ExecuteInProcessResult:
    rows = [{"id": f"t{n}", "category": "c", "text": text} for n, text in enumerate(texts)]
    (folder / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = EvaluationConfig.model_validate({**GIVEN, **options})
    recipe = SftRecipe.model_validate({"base": {"llama": {}}, "corpora": {"clips": 1}, "steps": 1})
    root = str(speaking.store.root)
    upstream = [
        *(AssetSpec(["serving", name]) for name in recipes),
        AssetSpec("code_arrays", partitions_def=corpus_partitions),
    ]
    job = define_asset_job("evaluate", select)
    definitions = Definitions(
        assets=[
            *upstream,
            *build_assets(
                evaluation,
                dict.fromkeys(recipes, recipe),
                {},
                folder,
                Shape(processes=1),
                lambda name: recipe.corpora,
            ),
        ],
        jobs=[job],
        executor=in_process_executor,
        resources={
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
            "launcher": TorchrunLauncher(),
        },
    )
    return definitions.resolve_job_def("evaluate").execute_in_process(
        instance=instance, raise_on_error=False
    )


def checks(result: ExecuteInProcessResult) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


@pytest.mark.slow
def test_report_of_a_model(instance: DagsterInstance, speaking: Speaking, tmp_path: Path) -> None:
    instance.add_dynamic_partitions("corpus", ["unrelated"])  # it has no arrays yet
    result = run(instance, speaking, tmp_path, ["nobody is here", "four three"])
    assert result.success
    assert checks(result) == dict.fromkeys(CHECKS, True)
    report = speaking.store.current("report/tiny", UNPARTITIONED)
    rows = lineage(speaking.store, [report])
    assert rows[-1].asset == "report/tiny"
    assert {row.asset for row in rows} >= {"codec", "code_arrays", "sft/tiny", "evaluation_suite"}
    (event,) = [
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == AssetKey(["report", "tiny"])
    ]
    shown = {name: value.value for name, value in event.items()}
    assert next(iter(shown)) == "wer" and list(shown)[-1] == "bookkeeping"
    assert re.fullmatch(r"\d+\.\d % \(\d+\.\d to \d+\.\d\)", shown["wer"])
    assert isinstance(shown["metrics/wer"], float) and "metrics/wer_low" not in shown
    assert shown["bookkeeping"]["facts"]["metrics"]["wer_low"] >= 0
    assert shown["bookkeeping"]["content"] == report.content
    assert None not in shown.values()
    folder = f"{FILES_URL}/report/tiny/all/{report.path.name}"
    for sample in read_samples(report.path):
        assert f"[{sample.id}]({folder}/report.html#{sample.anchor})" in shown["worst"]
        assert f"[play]({folder}/{sample.audio})" in shown["worst"]
    page = (report.path / "report.html").read_text()
    assert speaking.codec.content[:12] in page
    assert str(speaking.store.root) not in page, "a page must not name folders of a machine"


@pytest.mark.slow
def test_a_suite_of_training_texts_fails_its_check(
    instance: DagsterInstance, speaking: Speaking, tmp_path: Path
) -> None:
    lines = (speaking.arrays.path / "train_samples.jsonl").read_text().splitlines()
    known = json.loads(lines[0])["transcript"]
    result = run(instance, speaking, tmp_path, [known, "four three"])
    assert checks(result) == {
        "every_text_is_accounted_for": True,
        "suite_is_held_out": False,
        "metrics_did_not_fail": True,
    }


@pytest.mark.slow
def test_a_second_suite_with_unseen_speakers(
    instance: DagsterInstance, speaking: Speaking, tmp_path: Path
) -> None:
    shutil.copytree(EXAMPLES / "prompts", tmp_path / "prompts")
    lines = (EXAMPLES / "unseen_speakers.jsonl").read_text().splitlines()[:2]
    (tmp_path / "voices.jsonl").write_text("\n".join(lines))
    result = run(
        instance,
        speaking,
        tmp_path,
        ["four three"],
        ["suite/voices", "report/tiny/voices"],
        suites={"voices": {"path": "voices.jsonl"}},
        temperatures=[1.5],
        gates={"wer": 0.02},
    )
    assert result.success
    assert checks(result) == dict.fromkeys([*CHECKS, "wer_gate"], True)
    report = speaking.store.current("report/tiny/voices", UNPARTITIONED)
    assert report.facts.suite == "voices"
    assert report.facts.metrics["real_time_factor"] > 0
    assert len(read_samples(report.path)) == 2
    varied = read_samples(report.path, "temperatures.jsonl")
    assert [one.temperature for one in varied] == [1.5, 1.5]
    assert varied[0].audio is not None and (report.path / varied[0].audio).is_file()
    events = result.get_asset_materialization_events()
    (numbers,) = [e.materialization.metadata for e in events if "metrics/wer" in str(e)]
    assert numbers["metrics/wer"].value >= 0


@pytest.mark.slow
def test_a_report_with_references_of_another_corpus(
    instance: DagsterInstance, speaking: Speaking, tmp_path: Path
) -> None:
    """The recipe is trained on ``clips``; the reference speaker is in ``others``."""
    store, own = speaking.store, speaking.arrays
    build = Build("code_arrays", {"codec": speaking.codec}, {}, "1", partition="others")
    folder = store.work_folder(build) / "result"
    shutil.copytree(own.path, folder, ignore=shutil.ignore_patterns("manifest.json"))
    train, val = folder / "train_samples.jsonl", folder / "val_samples.jsonl"
    val.write_text(train.read_text().splitlines()[0] + "\n")
    others = store.publish(type(own), build, folder, own.facts)
    instance.add_dynamic_partitions("corpus", ["others"])
    assert run(instance, speaking, tmp_path, ["four three"]).success
    gates = {"speaker_similarity": 0.0}
    result = run(
        instance, speaking, tmp_path, ["four three"], reference_corpora=["others"], gates=gates
    )
    assert result.success
    (gate,) = [c for c in result.get_asset_check_evaluations() if "gate" in c.check_name]
    assert gate.description is not None and "against other recordings" in gate.description
    report = store.current("report/tiny", UNPARTITIONED)

    def digest(arrays: Handle) -> str:
        given = {"a": arrays}
        rate = expected_rate(given, "en")  # type: ignore[arg-type]
        return references_digest(reference_clips(given, 1), {}, rate)  # type: ignore[arg-type]

    assert read_references_digest(report.path) == digest(others) != digest(own)


def test_unknown_reference_corpora_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.reference_corpora has corpus 'nowhere'"):
        load_settings(environment={}, overrides={"evaluation": {"reference_corpora": ["nowhere"]}})


def test_without_reference_corpora_the_fingerprint_is_as_before() -> None:
    none = EvaluationConfig(suite=Path("suite.jsonl"))
    assert "target" not in none.determining()
    assert none.model_copy(update={"reference_corpora": ("clips",)}).determining()["target"] == [
        "clips"
    ]


def test_lineage_has_artifacts_that_are_no_longer_stored(
    speaking: Speaking, tmp_path: Path
) -> None:
    elsewhere = type(speaking.store)(tmp_path)
    build = Build("serving/copy", {"codec": speaking.codec}, {}, "1")
    folder = elsewhere.work_folder(build) / "result"
    folder.mkdir()
    (folder / "a").write_text("a")
    facts = speaking.serving.facts
    handle: Handle = elsewhere.publish(type(speaking.serving), build, folder, facts)
    rows = lineage(elsewhere, [handle])
    assert (rows[0].asset, rows[0].detail) == ("codec", "no longer stored")
