"""Metrics are compared only if the same models and code measured them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dagster import AssetSpec, materialize

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.evaluation.test_gates import SIMILARITY, WER
from tests.external_models.test_table import publish, report
from tts_assets.core.artifacts import ArtifactStore, Build, EvaluationSuite, Handle, Report
from tts_assets.evaluation.assets import comparison_asset
from tts_assets.evaluation.checks import baseline
from tts_assets.evaluation.config import (
    ComparisonConfig,
    EvaluationConfig,
    planned_comparisons,
)
from tts_assets.evaluation.history import earlier_reports, measured, measured_differently
from tts_assets.evaluation.results import SUMMARY_FILE

COLUMNS = {"words": WER, "similarity": SIMILARITY}
VERSIONS = {"words": "1", "similarity": "2"}
CONFIG = EvaluationConfig(suite=Path("suite.jsonl"))


@pytest.fixture
def suite(store: ArtifactStore) -> Handle:
    facts = {"texts": 1, "categories": {}}
    return publish(store, EvaluationSuite, Build("evaluation_suite", {}, {}, "1"), facts)


@pytest.mark.parametrize(
    ("config", "differ"),
    [
        ({"whisper": "large-v3"}, {"words"}),
        ({"beam_size": 1}, {"words"}),
        ({"window_seconds": 30.0}, {"words"}),
        ({"speaker_encoder": "0123"}, {"similarity"}),
        ({"versions": VERSIONS | {"similarity": "3"}}, {"similarity"}),
        ({"versions": VERSIONS | {"utmos": "1"}, "utmos": "4567"}, set()),
        ({"versions": VERSIONS | {"mine": "1"}}, set()),
        ({"temperatures": [], "seeds": [1, 2], "references": 3}, set()),
    ],
)
def test_metrics_that_are_measured_differently(
    store: ArtifactStore, suite: Handle, config: dict[str, object], differ: set[str]
) -> None:
    before = report(store, "tiny", suite, 0.1, temperatures=[1.5])
    after = report(store, "tiny", suite, 0.2, **config)
    assert measured_differently([measured(before), measured(after)]) == differ
    for metric, column in COLUMNS.items():
        assert (baseline(store, after, "", column, metric) is None) is (metric in differ)
    inputs = {"suite": suite, "serving": suite}
    earlier = earlier_reports(store, Build(after.asset, inputs, after.manifest.config, "2"))
    assert [past.folder for past in earlier] == ([] if differ else [before.path])


def test_another_suite_measures_everything_differently(store: ArtifactStore, suite: Handle) -> None:
    facts = {"texts": 1, "categories": {}}
    build = Build("evaluation_suite", {}, {"another": True}, "1")
    other = publish(store, EvaluationSuite, build, facts)
    both = [report(store, "tiny", on, 0.1) for on in (suite, other)]
    assert measured_differently(measured(one) for one in both) == {"words", "similarity"}


def published(
    store: ArtifactStore, suite: Handle, folder: Path, recipe: str, **config: object
) -> None:
    """Publish a report folder for a recipe, measured with ``config``."""
    known = {"versions": VERSIONS, **config}
    build = Build(f"report/{recipe}", {"suite": suite, "serving": suite}, known, "3")
    work = store.work_folder(build) / "result"
    shutil.copytree(folder, work)
    facts = {"recipe": recipe, "texts": 3, "wer": 0.2, "wer_by_category": {}}
    store.publish(Report, build, work, facts)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, ""),
        (
            {"speaker_encoder": "0123"},
            "Speaker similarity: not compared: the reports measure it with anoth",
        ),
        ({"whisper": "large-v3"}, "the reports measure the WER differently"),
    ],
)
def test_a_comparison_omits_or_refuses_metrics_that_are_measured_differently(
    store: ArtifactStore, suite: Handle, report: Path, config: dict[str, object], message: str
) -> None:
    published(store, suite, report, "one")
    published(store, suite, report, "two", **config)
    pair = ComparisonConfig(models=("one", "two"))
    evaluation = CONFIG.model_copy(update={"comparisons": {"pair": pair}})
    (asked,) = planned_comparisons(evaluation, {}, {}, {})
    compared = comparison_asset(asked)
    root = str(store.root)
    result = materialize(
        [AssetSpec(["report", "one"]), AssetSpec(["report", "two"]), compared],
        selection=[compared],
        resources={
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
        },
        raise_on_error=False,
    )
    if "whisper" in config:
        (failure,) = [event for event in result.all_events if event.is_step_failure]
        assert message in str(failure.step_failure_data.error)
        return
    summary = (store.current("comparison/pair").path / SUMMARY_FILE).read_text()
    assert message in summary
    assert ("not compared" in summary) is bool(message)
