"""Automation after a training: the real conditions on assets that only count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetDep,
    AssetKey,
    AssetsDefinition,
    DagsterInstance,
    DataVersion,
    Definitions,
    MaterializeResult,
    SpecificPartitionsPartitionMapping,
    asset,
    evaluate_automation_conditions,
)
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

from sensors.automation import training_assets, with_training_condition
from tts_assets.orchestration.dependencies import corpus_partitions

RECIPES = ("first", "second")  # each of the corpus of its name
Dep = AssetDep | list[str]


class Voice:
    """Two recipes and the promoted model of a voice; ``bad``: assets whose blocking check fails."""

    def __init__(self, instance: DagsterInstance) -> None:
        self.instance = instance
        self.bad: set[str] = set()
        self.made: Counter[str] = Counter()
        assert corpus_partitions.name is not None
        instance.add_dynamic_partitions(corpus_partitions.name, list(RECIPES))
        self.defs = Definitions(list(self._assets()))
        self.cursor: AssetDaemonCursor | None = None
        for recipe in RECIPES:
            self.run("code_arrays", partition=recipe)
        self.run(*(name for name in self.names() if name != "code_arrays"))
        assert self.tick() == []

    def _assets(self) -> Iterator[AssetsDefinition]:
        yield self._asset("code_arrays", "arrays")
        served: list[Dep] = []
        for recipe in RECIPES:
            only = SpecificPartitionsPartitionMapping([recipe])
            arrays = AssetDep("code_arrays", partition_mapping=only)
            sft, serving, report = ([stage, recipe] for stage in ("sft", "serving", "report"))
            yield self._asset("/".join(sft), "sft", arrays)
            yield self._asset("/".join(serving), "serving", sft, arrays)
            yield self._asset("/".join(report), "reports", serving, arrays)
            served += [serving, report]
        yield self._asset("promoted/voice", "promotion", *served)

    def _asset(self, name: str, group: str, *deps: Dep) -> AssetsDefinition:
        key = AssetKey(name.split("/"))

        @asset(
            key=key,
            group_name=group,
            deps=list(deps),
            partitions_def=corpus_partitions if name == "code_arrays" else None,
            check_specs=[]
            if name == "code_arrays"
            else [AssetCheckSpec("gate", asset=key, blocking=True)],
        )
        def counted():  # type: ignore[no-untyped-def]  # Dagster reads no deferred annotations
            self.made[name] += 1
            passed = AssetCheckResult(check_name="gate", passed=name not in self.bad)
            return MaterializeResult(
                data_version=DataVersion(str(self.made[name])),
                check_results=[] if name == "code_arrays" else [passed],
            )

        return counted.map_asset_specs(with_training_condition)

    def names(self) -> list[str]:
        return [
            key.to_user_string() for key in self.defs.resolve_asset_graph().get_all_asset_keys()
        ]

    def run(self, *names: str, partition: str | None = None) -> None:
        self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[AssetKey(name.split("/")) for name in names],
            partition_key=partition,
            raise_on_error=False,
        )

    def tick(self) -> list[str]:
        """What one tick of the GPU assets' conditions asks for."""
        result = evaluate_automation_conditions(
            self.defs,
            self.instance,
            training_assets(),
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        keys = self.defs.resolve_asset_graph().get_all_asset_keys()
        return sorted(key.to_user_string() for key in keys if result.get_requested_partitions(key))

    def follow(self) -> list[str]:
        """Tick and run until nothing is asked for; what was run, in this order."""
        made: list[str] = []
        while asked := self.tick():
            self.run(*asked)
            made += asked
        return made


@pytest.fixture
def voice() -> Iterator[Voice]:
    with DagsterInstance.ephemeral() as instance:
        yield Voice(instance)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_one_of_two_candidates_is_retrained_and_promoted(voice: Voice, recipe: str) -> None:
    voice.run("code_arrays", partition=recipe)
    chain = [f"{stage}/{recipe}" for stage in ("sft", "serving", "report")]
    assert voice.follow() == [*chain, "promoted/voice"]


def test_a_report_materialized_by_hand_is_used(voice: Voice) -> None:
    voice.run("report/first")
    assert voice.follow() == ["promoted/voice"]


@pytest.mark.slow
def test_a_failed_gate_blocks_until_a_better_report(
    voice: Voice,
) -> None:
    voice.bad.add("report/first")
    voice.run("sft/first")
    assert voice.follow() == ["serving/first", "report/first"]
    voice.bad.clear()
    voice.run("report/first")
    assert voice.follow() == ["promoted/voice"]
