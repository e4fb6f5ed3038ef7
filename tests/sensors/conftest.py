"""A small daemon: sensors and automation conditions tick, and their requests run."""

from __future__ import annotations

import importlib
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AutomationConditionSensorDefinition,
    DagsterInstance,
    Definitions,
    SensorResult,
    build_sensor_context,
    evaluate_automation_conditions,
)
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor

from resources.launcher import Launcher, Program
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.definitions import build_defs
from tts_assets.orchestration.dependencies import corpus_partitions
from tts_assets.settings import Settings, load_settings

Made = tuple[str, str | None]  # asset, partition
ROOT = Path(__file__).resolve().parents[2] / "examples"
SPOKEN = "spoken"  # the corpus that is discovered
MOST_TICKS = 12


class InProcess(Launcher):
    """Runs a program in this process, as one rank."""

    def launch(
        self, context: AssetExecutionContext, program: Program, pipes: Mapping[str, str]
    ) -> None:
        importlib.import_module(program.module).main([str(program.run_dir / "run.json")])


class Daemon:
    """Real definitions and a real instance, without processes and clocks."""

    def __init__(self, settings: Settings, instance: DagsterInstance) -> None:
        self.settings = settings
        self.instance = instance
        self.store = ArtifactStore(settings.storage)
        self.defs: Definitions = build_defs(settings, {"launcher": InProcess()})
        self.on = ["data_automation"]  # automation sensors that are switched on
        self.cursors: dict[str, AssetDaemonCursor] = {}
        self.sensor_cursor: str | None = None

    def sense(self, name: str) -> SensorResult:
        """One tick of a sensor; the partitions it asks for are added."""
        sensor = self.defs.resolve_sensor_def(name)
        with build_sensor_context(instance=self.instance, cursor=self.sensor_cursor) as context:
            result = sensor(context)
        assert isinstance(result, SensorResult)
        for request in result.dynamic_partitions_requests or []:
            assert corpus_partitions.name is not None
            self.instance.add_dynamic_partitions(
                corpus_partitions.name, list(request.partition_keys)
            )
        if name == "changed_corpora":
            self.sensor_cursor = result.cursor
        return result

    def looks(self) -> list[Made]:
        requests = self.sense("changed_corpora").run_requests or []
        return [
            (key.to_user_string(), request.partition_key)
            for request in requests
            for key in request.asset_selection or []
        ]

    def follow(self) -> list[Made]:
        """One tick of each automation sensor that is on."""
        keys = self.defs.resolve_asset_graph().get_all_asset_keys()
        asked: list[Made] = []
        for name in self.on:
            sensor = self.defs.resolve_sensor_def(name)
            assert isinstance(sensor, AutomationConditionSensorDefinition)
            result = evaluate_automation_conditions(
                self.defs, self.instance, sensor.asset_selection, cursor=self.cursors.get(name)
            )
            self.cursors[name] = result.cursor
            asked += [
                (key.to_user_string(), partition)
                for key in keys
                for partition in result.get_requested_partitions(key)
            ]
        return sorted(asked)

    def run(self, made: list[Made]) -> None:
        """One run a partition, as the daemon does."""
        assets = defaultdict(list)
        for asset, partition in made:
            assets[partition].append(AssetKey(asset.split("/")))
        job = self.defs.resolve_implicit_global_asset_job_def()
        for partition, keys in assets.items():
            job.execute_in_process(
                instance=self.instance,
                asset_selection=keys,
                partition_key=partition,
                raise_on_error=False,
            )

    def settle(self) -> list[Made]:
        """Tick and run until nothing is asked for; what was run."""
        made: list[Made] = []
        for _ in range(MOST_TICKS):
            asked = self.looks() + self.follow()
            if not asked:
                return made
            self.run(asked)
            made += asked
        raise AssertionError(f"it does not come to rest: {made}")


def watched_project(folder: Path, clips: Path) -> Settings:
    """A project below ``folder`` that discovers one corpus of 13 clips by its files."""
    shutil.copytree(clips, folder / "corpora" / SPOKEN)
    (folder / "project.toml").write_text(
        '[project]\nname = "watched"\n'
        '[discovery]\nroot = "corpora"\nlanguage = "en"\n'
        f'[codec]\nshard_samples = 5\ncheckpoint = "{ROOT / "codecs/announcer-16khz"}"\n'
        f'[evaluation]\nsuite = "{ROOT / "suites/announcer.jsonl"}"\n'
    )
    return load_settings(folder / "project.toml", environment={})


@pytest.fixture
def daemon(clips: Path, tmp_path: Path) -> Iterator[Daemon]:
    with DagsterInstance.ephemeral() as instance:
        yield Daemon(watched_project(tmp_path, clips), instance)


@pytest.fixture
def corpora(daemon: Daemon) -> Path:
    """The discovery root."""
    return daemon.settings.root / "corpora"
