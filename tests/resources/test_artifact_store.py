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

from resources.artifact_store import (
    ArtifactIOManager,
    ArtifactStoreResource,
    asset_metadata,
    rounded,
)
from tests.core.test_artifacts import FACTS, build, publish
from tts_assets.core.artifacts import ArtifactStore, EvaluationSuite, Handle
from tts_assets.core.metadata import Link, Markdown, Table


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


def test_an_asset_page_starts_with_figures_and_ends_with_bookkeeping(store: ArtifactStore) -> None:
    handle = publish(store, build(), "ours\n")
    described = {
        "seconds": 0.123456,
        "unknown": None,
        "table": Table([{"clip": Link("a|b", handle.path / "a (1).flac", "x y"), "text": "*"}]),
        "card": Markdown("# Card"),
        "page": handle.path / "page.html",
        "wer": "8.5 % (6.1 to 11.2)",
    }
    shown = asset_metadata(handle, store.root, described, {"reused": False})
    assert next(iter(shown)) == "wer" and list(shown)[-2:] == ["reused", "bookkeeping"]
    order = [name for name in shown if name in described]
    assert order == ["wer", "page", "table", "card", "seconds"]
    assert shown["seconds"] == 0.1235
    cell = shown["table"].value.splitlines()[-1]
    assert cell.startswith("| [a\\|b](http://127.0.0.1:3001/") and cell.endswith(" | \\* |")
    assert "/a%20%281%29.flac#x%20y)" in cell
    kept = shown["bookkeeping"].value
    assert kept["fingerprint"] == handle.manifest.fingerprint and kept["facts"]
    assert "fingerprint" not in shown and "libraries" not in shown


def test_numbers_have_four_digits() -> None:
    given = [0.590498, 0.042825121314826145, 12345.67, -1.23456, 0.0]
    assert [rounded(value) for value in given] == [0.5905, 0.04283, 12346.0, -1.235, 0.0]
