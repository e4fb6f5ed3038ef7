"""A blocking check that failed in another run keeps a model from serving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

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
    asset,
    asset_check,
    materialize,
)

from resources.artifact_store import ArtifactIOManager, ArtifactStoreResource
from tests.promotion.conftest import Studio
from tts_assets.core.artifacts import Handle
from tts_assets.definitions import build_stages
from tts_assets.promotion.assets import blocking_checks, promoted_asset
from tts_assets.promotion.config import PromotionConfig
from tts_assets.settings import load_settings

VOICE = "voice"
REPORT = AssetKey(["report", "second"])
GATE = AssetCheckKey(REPORT, "gate")


@dataclass
class Runs:
    """Runs of Dagster, each of which looks at ``report/second`` or decides who serves."""

    studio: Studio
    config: PromotionConfig
    instance: DagsterInstance
    asked: list[AssetCheckKey] = field(default_factory=lambda: [GATE])

    def report(self, passes: bool | None, blocking: bool = True, broken: bool = False) -> None:
        """The current report, checked; not checked if ``passes`` is None. What is ``broken`` fails
        before it comes to the check."""
        handle = self.studio.store.current("report/second")

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
        """Who serves now."""
        assert self.run(promoted_asset(VOICE, self.config, self.asked))
        return str(self.studio.store.current(f"promoted/{VOICE}").facts.recipe)

    def run(self, *made: AssetsDefinition | AssetChecksDefinition) -> bool:
        root = str(self.studio.store.root)
        resources = {
            "store": ArtifactStoreResource(root=root),
            "io_manager": ArtifactIOManager(root=root),
        }
        return materialize(
            made, instance=self.instance, resources=resources, raise_on_error=False
        ).success


@pytest.fixture
def runs(studio: Studio, config: PromotionConfig) -> Iterator[Runs]:
    """``first`` serves, and ``second`` is better."""
    studio.candidate("first", "a")
    with DagsterInstance.ephemeral() as instance:
        runs = Runs(studio, config, instance)
        assert runs.promote() == "first"
        studio.candidate("second", "b", wer=0.01)
        yield runs


def test_a_check_that_failed_in_another_run_blocks_until_it_passes(runs: Runs) -> None:
    runs.report(passes=False)
    assert runs.promote() == "first"
    event = runs.instance.get_latest_materialization_event(AssetKey(["promoted", VOICE]))
    assert event is not None and event.asset_materialization is not None
    verdicts = str(event.asset_materialization.metadata["verdicts"].value)
    assert "report/second failed its blocking check gate" in verdicts
    runs.report(passes=True)
    assert runs.promote() == "second"


def test_a_run_that_never_comes_to_the_check_does_not_forgive(runs: Runs) -> None:
    runs.report(passes=False)
    runs.report(passes=True, broken=True)  # leaves the plan of a check
    assert runs.promote() == "first"


def test_what_is_taken_over_without_a_check_does_not_forgive(runs: Runs) -> None:
    runs.report(passes=False)
    runs.report(passes=None)
    assert runs.promote() == "first"


def test_only_what_is_judged_counts(runs: Runs) -> None:
    runs.report(passes=False)
    runs.studio.candidate("second", "c", wer=0.02)  # another model and report, by hand
    assert runs.promote() == "second"


def test_an_earlier_content_that_is_current_again_is_still_failed(runs: Runs) -> None:
    failed = runs.studio.store.current("report/second")
    runs.report(passes=False)
    runs.studio.report("second", target="others", wer=0.01)
    runs.report(passes=True)
    runs.studio.store.select(failed)
    assert runs.promote() == "first"


def test_what_no_check_has_seen_may_serve(runs: Runs) -> None:
    """As in an instance that was emptied."""
    assert runs.promote() == "second"


def test_a_check_that_is_no_longer_configured_blocks_nothing(runs: Runs) -> None:
    runs.report(passes=False)
    runs.asked = []
    assert runs.promote() == "second"


def test_the_blocking_checks_of_all_candidates_are_asked() -> None:
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
