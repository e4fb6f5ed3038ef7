"""Concurrent runs: a step reads the artifacts of its own run."""

from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    DagsterInstance,
    Output,
    asset,
    materialize,
)

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.core.test_artifacts import FACTS, build, publish
from tts_assets.core.artifacts import ArtifactStore, EvaluationSuite, Handle


@asset(name="evaluation_suite", io_manager_key="artifacts")
def suite(context: AssetExecutionContext, store: ArtifactStoreResource) -> Output[EvaluationSuite]:
    def run(work: Path) -> dict[str, Any]:
        (work / "result" / "suite.jsonl").write_text("ours\n")
        return FACTS

    return store.materialize(context, EvaluationSuite, build(config={"whose": "ours"}), run)


@asset(deps=[suite])
def another_run(store: ArtifactStoreResource) -> None:
    """What is current is another's before the next step begins."""
    publish(store.store, build(config={"whose": "theirs"}), "theirs\n")


@asset(deps=[another_run])
def reader(evaluation_suite: EvaluationSuite) -> str:
    return (evaluation_suite.path / "suite.jsonl").read_text()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "storage")


def read_by(store: ArtifactStore, *assets: AssetsDefinition) -> str:
    root = str(store.root)
    resources = {
        "store": ArtifactStoreResource(root=root),
        "artifacts": ArtifactIOManager(root=root),
    }
    with DagsterInstance.ephemeral() as instance:
        chosen = [one.key for one in assets]
        result = materialize(
            [suite, another_run, reader], instance=instance, resources=resources, selection=chosen
        )
        text: str = result.output_for_node("reader")
    return text


def test_a_step_reads_artifacts_of_its_run(store: ArtifactStore) -> None:
    assert read_by(store, suite, another_run, reader) == "ours\n"


def test_a_single_step_reads_current_artifacts(store: ArtifactStore) -> None:
    read_by(store, suite, another_run, reader)
    current: Handle = store.current("evaluation_suite")
    assert read_by(store, reader) == (current.path / "suite.jsonl").read_text() == "theirs\n"
