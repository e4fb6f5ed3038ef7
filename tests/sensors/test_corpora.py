"""The corpora sensors on a real folder: partitions appear, a change asks for one refresh."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import (
    DagsterInstance,
    SensorDefinition,
    SensorResult,
    SkipReason,
    build_sensor_context,
)

from sensors.corpora import build_corpora_sensors
from tts_assets.partitions import corpus_partitions
from tts_assets.settings import load_settings

NAME = "asterisk_en"


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def corpus(clips: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clips, tmp_path / "corpus"))


@pytest.fixture
def sensors(corpus: Path) -> dict[str, SensorDefinition]:
    overrides = {"corpora": {NAME: {"path": str(corpus)}}}
    settings = load_settings(environment={}, overrides=overrides)
    return {sensor.name: sensor for sensor in build_corpora_sensors(settings, "refresh")}


def tick(sensor: SensorDefinition, instance: DagsterInstance, cursor: str | None) -> SensorResult:
    result = sensor(build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, SensorResult)
    return result


def test_a_declared_corpus_becomes_a_partition_once(
    sensors: dict[str, SensorDefinition], instance: DagsterInstance
) -> None:
    sensor = sensors["declared_corpora"]
    (request,) = tick(sensor, instance, None).dynamic_partitions_requests
    assert request.partition_keys == [NAME]
    assert corpus_partitions.name is not None
    instance.add_dynamic_partitions(corpus_partitions.name, [NAME])
    assert isinstance(sensor(build_sensor_context(instance=instance)), SkipReason)


def test_a_change_asks_for_one_refresh(
    sensors: dict[str, SensorDefinition], instance: DagsterInstance, corpus: Path
) -> None:
    sensor = sensors["changed_corpora"]
    first = tick(sensor, instance, None)
    assert [request.partition_key for request in first.run_requests or []] == [NAME]
    quiet = tick(sensor, instance, first.cursor)
    assert not quiet.run_requests
    os.utime(next(corpus.rglob("*.g722")))
    changed = tick(sensor, instance, quiet.cursor)
    assert len(changed.run_requests or []) == 1
    assert not tick(sensor, instance, changed.cursor).run_requests
