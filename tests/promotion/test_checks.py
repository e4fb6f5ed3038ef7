"""A blocking check that failed in another run prevents a promotion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest
from dagster import (
    AssetCheckKey,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetKey,
    AssetsDefinition,
    DagsterInstance,
    DataVersion,
    Output,
    SourceAsset,
    asset,
    asset_check,
    materialize,
)

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.promotion.conftest import Publisher
from tts_assets.core.artifacts import ArtifactError, Handle, TrainingEffect
from tts_assets.definitions import build_stages
from tts_assets.evaluation.config import EvaluationConfig
from tts_assets.orchestration.checks import blocking_checks
from tts_assets.promotion.assets import effect_asset, promoted_asset
from tts_assets.promotion.decision import PromotionConfig, promote_best, training_steps
from tts_assets.provenance import withdraw
from tts_assets.settings import load_settings

VOICE = "voice"
REPORT = AssetKey(["report", "second"])
GATE = AssetCheckKey(REPORT, "gate")


@dataclass
class Runs:
    """Dagster runs that check ``report/second`` or promote a model."""

    publisher: Publisher
    config: PromotionConfig
    instance: DagsterInstance
    asked: list[AssetCheckKey] = field(default_factory=lambda: [GATE])

    def report(self, passes: bool | None, blocking: bool = True, broken: bool = False) -> None:
        """Materialize the current report with its check; without the check if ``passes`` is None.

        If ``broken``, the run fails before the check.
        """
        handle = self.publisher.store.current("report/second")

        @asset(key=REPORT)
        def report() -> Output[Handle]:
            if broken:
                raise RuntimeError("the GPU is gone")
            return Output(handle, data_version=DataVersion(handle.content))

        @asset_check(asset=report, name="gate", blocking=blocking)
        def gate() -> AssetCheckResult:
            return AssetCheckResult(passed=bool(passes))

        checks = [] if passes is None else [gate]
        self.run(report, *checks)

    def promote(self) -> str:
        """Materialize the promoted model; returns its recipe."""
        assert self.run(promoted_asset(VOICE, self.config, self.asked))
        return str(self.publisher.store.current(f"promoted/{VOICE}").facts.recipe)

    def run(self, *made: AssetsDefinition | AssetChecksDefinition | SourceAsset) -> bool:
        root = str(self.publisher.store.root)
        resources = {
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
        }
        return materialize(
            made, instance=self.instance, resources=resources, raise_on_error=False
        ).success


@pytest.fixture
def runs(publisher: Publisher, config: PromotionConfig) -> Iterator[Runs]:
    """``first`` is promoted, and ``second`` is better."""
    publisher.candidate("first", "a")
    with DagsterInstance.ephemeral() as instance:
        runs = Runs(publisher, config, instance)
        assert runs.promote() == "first"
        publisher.candidate("second", "b", wer=0.01)
        yield runs


def test_a_check_that_failed_in_another_run_blocks_until_it_passes(runs: Runs) -> None:
    runs.report(passes=False)
    assert runs.promote() == "first"
    event = runs.instance.get_latest_materialization_event(AssetKey(["promoted", VOICE]))
    assert event is not None and event.asset_materialization is not None
    decisions = str(event.asset_materialization.metadata["decisions"].value)
    assert "report/second failed its blocking check gate" in decisions
    runs.report(passes=True)
    assert runs.promote() == "second"


def test_a_run_that_fails_before_the_check_keeps_the_block(runs: Runs) -> None:
    runs.report(passes=False)
    runs.report(passes=True, broken=True)  # the planned evaluation remains
    assert runs.promote() == "first"


def test_a_run_without_the_check_keeps_the_block(runs: Runs) -> None:
    runs.report(passes=False)
    runs.report(passes=None)
    assert runs.promote() == "first"


def test_a_failed_check_of_another_artifact_does_not_count(runs: Runs) -> None:
    runs.report(passes=False)
    runs.publisher.candidate("second", "c", wer=0.02)  # another model and report, by hand
    assert runs.promote() == "second"


def test_an_earlier_content_that_is_current_again_is_still_failed(runs: Runs) -> None:
    failed = runs.publisher.store.current("report/second")
    runs.report(passes=False)
    runs.publisher.report("second", target="others", wer=0.01)
    runs.report(passes=True)
    runs.publisher.store.select(failed)
    assert runs.promote() == "first"


def test_without_evaluations_a_candidate_is_promoted(runs: Runs) -> None:
    """For example after Dagster's history was deleted."""
    assert runs.promote() == "second"


def test_a_check_that_is_no_longer_configured_blocks_nothing(runs: Runs) -> None:
    runs.report(passes=False)
    runs.asked = []
    assert runs.promote() == "second"


def test_blocking_checks_of_all_candidates() -> None:
    gates = {"evaluation": {"gates": {"wer": 0.02}}}
    settings = load_settings(environment={}, overrides=gates)
    asked = {
        (key.asset_key.to_user_string(), key.name)
        for key in blocking_checks(build_stages(settings))
    }
    for candidate in settings.promotion["announcer"].candidates:
        assert {
            (f"serving/{candidate}", "transformers_agrees"),
            (f"serving/{candidate}", "vllm_agrees"),
            (f"report/{candidate}", "suite_is_held_out"),
            (f"report/{candidate}", "wer_gate"),
        } <= asked
        assert (f"report/{candidate}", "metrics_did_not_fail") not in asked


def test_the_effect_of_training_follows_from_the_candidates(runs: Runs) -> None:
    """``second`` is trained from ``first``; the category of the promotion decides."""
    config = runs.config.model_copy(update={"category": "digits"})
    evaluation = EvaluationConfig(suite=Path("suite.jsonl"))
    steps = training_steps(runs.config.candidates, {"first": "", "second": "first"})
    suites = {"first": ["main", "numerals"], "second": ["main"]}
    reports = [SourceAsset(["report", name]) for name in steps]
    assert runs.run(effect_asset(VOICE, config, steps, suites, evaluation), *reports)
    effect = runs.publisher.store.current(f"effect/{VOICE}")
    assert isinstance(effect, TrainingEffect) and effect.facts.worse == 0
    found = json.loads((effect.path / "effect.json").read_text())
    assert found["bases"] == {"first": "", "second": "first"} and [*found["suites"]] == ["main"]
    page = (effect.path / "effect.html").read_text()
    assert "digits, which decides on promotion" in page
    lineage = page[page.index('id="lineage"') :]
    assert "report/first" in lineage and "serving/second" in lineage


def test_bases_come_before_the_models_that_are_trained_from_them() -> None:
    bases = {"hub": "", "long": "hub", "grpo": "long", "dpo": "long", "other": ""}
    steps = training_steps(["grpo", "long", "dpo"], bases)
    assert [*steps.items()] == [("hub", ""), ("long", "hub"), ("grpo", "long"), ("dpo", "long")]


def test_a_model_whose_consent_ended_is_replaced_without_a_gain(
    publisher: Publisher, config: PromotionConfig
) -> None:
    """A promoted model that may not be used is no measure for its successor."""
    card = json.dumps({"consents": {"ann": {"who": "Ann", "purpose": "tests"}}})
    publisher.candidate("first", "a", card)
    promote_best(publisher.store, "voice", config, lambda _: [])
    withdraw(publisher.store, "ann", "a letter", date(2026, 11, 30))
    with pytest.raises(ArtifactError, match=r"first: first is not promoted: .* was withdrawn"):
        promote_best(publisher.store, "voice", config, lambda _: [])
    publisher.candidate("first", "b", wer=0.2)  # without the corpus, and worse
    handle, _ = promote_best(publisher.store, "voice", config, lambda _: [])
    assert handle.facts.model == publisher.store.current("serving/first").content
    assert handle.facts.event == "promoted" and "was withdrawn on 2026-11-30" in handle.facts.why
