"""Runs with other steps or another seed: their results do not become current."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetIn,
    AssetKey,
    AssetsDefinition,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    evaluate_automation_conditions,
)
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from resources.torchrun import TorchrunLauncher
from sensors.automation import training_assets, with_training_condition
from tts_assets.core.artifacts import ArtifactStore, EvaluationSuite, open_artifact
from tts_assets.evaluation.suite import SuiteText, write_suite
from tts_assets.orchestration.dependencies import EXPERIMENT_TAG
from tts_assets.orchestration.program_asset import Plan, Request, Training, artifact_asset
from tts_assets.sft.config import SftRecipe

RECIPE = SftRecipe.model_validate(
    {"base": {"llama": {}}, "corpora": {"a": 1}, "steps": 7, "seed": 1}
)
CHAIN = ("sft/voice", "serving/voice", "report/voice")
OVERRIDE = {"ops": {"sft__voice": {"config": {"steps": 2}}}}


def trained() -> AssetsDefinition:
    def plan(request: Request) -> Plan[EvaluationSuite]:
        asked = request.recipe(RECIPE)
        texts = [SuiteText(id="1", category="c", text=f"{asked.steps} steps, seed {asked.seed}")]
        return Plan(
            {"steps": asked.steps},
            lambda work: write_suite(work / "result" / "suite.jsonl", texts),
            seed=asked.seed,
        )

    options = Training.shown_for(RECIPE)
    return artifact_asset(
        ["sft", "voice"], plan, options=options, code_version="1", group_name="sft"
    )


def later(key: str, source: str, group: str) -> AssetsDefinition:
    def plan(request: Request, source: EvaluationSuite) -> Plan[EvaluationSuite]:
        def make(work: Path) -> dict[str, Any]:
            content = (source.path / "suite.jsonl").read_bytes()
            (work / "result" / "suite.jsonl").write_bytes(content)
            return source.facts.model_dump()

        return Plan({}, make, inputs={"source": source})

    return artifact_asset(
        key.split("/"),
        plan,
        ins={"source": AssetIn(AssetKey(source.split("/")))},
        code_version="1",
        group_name=group,
    )


class Voice:
    """A recipe, its serving model and its report, with the real conditions of GPU assets."""

    def __init__(self, instance: DagsterInstance, root: Path) -> None:
        self.instance, self.store = instance, ArtifactStore(root)
        assets = [
            trained(),
            later("serving/voice", "sft/voice", "serving"),
            later("report/voice", "serving/voice", "reports"),
        ]
        self.defs = Definitions(
            [one.map_asset_specs(with_training_condition) for one in assets],
            resources={
                "store": ArtifactStoreResource(root=str(root)),
                "io_manager": ArtifactIOManager(root=str(root)),
                "launcher": TorchrunLauncher(grace_seconds=5.0),
            },
        )
        self.cursor: AssetDaemonCursor | None = None

    def run(self, *names: str, config: Any = None) -> ExecuteInProcessResult:
        return self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[AssetKey(name.split("/")) for name in names],
            run_config=config,
        )

    def tick(self) -> list[str]:
        """What one tick of the conditions asks for."""
        result = evaluate_automation_conditions(
            self.defs, self.instance, training_assets(), cursor=self.cursor
        )
        self.cursor = result.cursor
        keys = [AssetKey(name.split("/")) for name in CHAIN]
        return [key.to_user_string() for key in keys if result.get_requested_partitions(key)]

    def current(self) -> list[str]:
        return [self.store.current(name).manifest.fingerprint for name in CHAIN]

    def versions(self) -> list[str]:
        events = [
            self.instance.get_latest_materialization_event(AssetKey(name.split("/")))
            for name in CHAIN
        ]
        materializations = [event.asset_materialization for event in events if event]
        return [(made.tags or {})["dagster/data_version"] for made in materializations if made]


@pytest.fixture
def voice(tmp_path: Path) -> Iterator[Voice]:
    with DagsterInstance.ephemeral() as instance:
        yield Voice(instance, tmp_path / "storage")


def experiments(result: ExecuteInProcessResult) -> dict[str, Any]:
    """The metadata ``experiment`` by asset."""
    found = {}
    for event in result.get_asset_materialization_events():
        made = event.step_materialization_data.materialization
        if "experiment" in made.metadata:
            found[made.asset_key.to_user_string()] = made.metadata["experiment"].value
    return found


def test_an_experiment_is_marked_and_does_not_become_current(voice: Voice) -> None:
    """Nor do the serving model and the report that the same run makes from it."""
    assert experiments(voice.run(*CHAIN)) == {}
    assert voice.tick() == []
    own, versions = voice.current(), voice.versions()
    result = voice.run(*CHAIN, config=OVERRIDE)
    assert experiments(result) == {
        "sft/voice": "steps 2 instead of 7",
        "serving/voice": "made from sft/voice",
        "report/voice": "made from serving/voice",
    }
    assert [path.name for path in voice.store.published(CHAIN[2])] == [own[2]]
    reports = voice.store.folder(CHAIN[2]).glob("*/suite.jsonl")
    assert sorted({path.read_text().count("2 steps") for path in reports}) == [0, 1]
    assert voice.current() == own and voice.versions() == versions
    run = voice.instance.get_run_by_id(result.run_id)
    assert run is not None and EXPERIMENT_TAG in run.tags
    assert voice.tick() == []
    again = voice.run(*CHAIN)
    assert experiments(again) == {} and voice.current() == own and voice.tick() == []


def test_a_recipe_that_becomes_equal_to_an_experiment_selects_it(voice: Voice) -> None:
    voice.run("sft/voice", config=OVERRIDE)
    assert voice.store.published("sft/voice") == []
    [made] = voice.store.folder("sft/voice").glob("*/suite.jsonl")
    voice.store.select(open_artifact(made.parent))  # as a run that reuses it does
    assert voice.store.published("sft/voice") == [made.parent]
    assert voice.store.current("sft/voice").path == made.parent


def test_automation_does_not_follow_an_experiment(voice: Voice) -> None:
    voice.run(*CHAIN)
    assert voice.tick() == []
    voice.run("sft/voice", config=OVERRIDE)
    assert voice.tick() == []
    voice.run("serving/voice")  # a run of its own: from the recipe's checkpoint
    made = (voice.store.current("serving/voice").path / "suite.jsonl").read_text()
    assert "7 steps" in made


def test_a_first_experiment_is_not_current_either(voice: Voice) -> None:
    voice.tick()  # asks for the recipe, which has no inputs here
    voice.run("sft/voice", config=OVERRIDE)
    assert not (voice.store.folder("sft/voice") / "current").exists()
    assert voice.tick() == []
    assert experiments(voice.run(*CHAIN)) == {}
    assert len({*voice.current()}) == 3


def test_the_values_of_the_recipe_are_no_experiment(voice: Voice) -> None:
    """They fill the form of the launchpad, which sends them."""
    voice.run("sft/voice")
    same = {"ops": {"sft__voice": {"config": {"steps": 7, "seed": 1}}}}
    assert experiments(voice.run("sft/voice", config=same)) == {}
