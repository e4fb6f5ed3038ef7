"""What follows from a retraining by itself, up to who serves: real definitions, reported events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    AutomationConditionSensorDefinition,
    DagsterInstance,
    evaluate_automation_conditions,
)
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

from tests.sensors.conftest import SPOKEN
from tests.sensors.test_training import OTHER, two_voices
from tts_assets.definitions import build_defs
from tts_assets.partitions import corpus_partitions


class Reported:
    """Assets that are said to be made, with content and checks; ticks of ``gpu_automation``."""

    def __init__(self, folder: Path, clips: Path, instance: DagsterInstance) -> None:
        self.instance = instance
        self.defs = build_defs(two_voices(folder, clips))
        self.graph = self.defs.resolve_asset_graph()
        self.cursor: AssetDaemonCursor | None = None
        assert corpus_partitions.name is not None
        instance.add_dynamic_partitions(corpus_partitions.name, [SPOKEN, OTHER])
        for key in self.graph.toposorted_asset_keys:
            partitions = (SPOKEN, OTHER) if self.graph.get(key).is_partitioned else (None,)
            for partition in partitions:
                self.make(key.to_user_string(), "before", partition=partition)

    def make(
        self, asset: str, content: str, passed: bool = True, partition: str | None = None
    ) -> None:
        key = AssetKey(asset.split("/"))
        self.instance.report_runless_asset_event(
            AssetMaterialization(key, partition=partition, tags={"dagster/data_version": content})
        )
        for check in self.graph.get(key).check_keys:
            self.instance.report_runless_asset_event(
                AssetCheckEvaluation(
                    asset_key=key, check_name=check.name, passed=passed, partition=partition
                )
            )

    def tick(self) -> list[str]:
        """What one tick asks for."""
        sensor = self.defs.resolve_sensor_def("gpu_automation")
        assert isinstance(sensor, AutomationConditionSensorDefinition)
        result = evaluate_automation_conditions(
            self.defs, self.instance, sensor.asset_selection, cursor=self.cursor
        )
        self.cursor = result.cursor
        keys = sensor.asset_selection.resolve(self.graph)
        return sorted(key.to_user_string() for key in keys if result.get_requested_partitions(key))


@pytest.fixture
def reported(clips: Path, tmp_path: Path) -> Iterator[Reported]:
    with DagsterInstance.ephemeral() as instance:
        made = Reported(tmp_path, clips, instance)
        assert made.tick() == []
        yield made


def test_a_retrained_recipe_is_converted_judged_and_may_serve(reported: Reported) -> None:
    reported.make(f"sft/{OTHER}", "after")
    asked = []
    for _ in range(5):
        (now,) = reported.tick() or ["nothing"]
        asked.append(now)
        if now != "nothing":
            reported.make(now, "after")
    assert asked == [f"serving/{OTHER}", f"report/{OTHER}", "promoted/voice", "nothing", "nothing"]


def test_a_report_of_the_same_model_on_other_terms_is_enough(reported: Reported) -> None:
    reported.make(f"report/{SPOKEN}", "after")
    assert reported.tick() == ["promoted/voice"]


def test_a_report_that_fails_its_gate_leads_nowhere(reported: Reported) -> None:
    reported.make(f"report/{SPOKEN}", "worse", passed=False)
    assert reported.tick() == []
    reported.make(f"report/{SPOKEN}", "better")
    assert reported.tick() == ["promoted/voice"]
