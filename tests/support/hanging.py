"""Definitions with a run that hangs: its program counts to 2 and waits."""

from pathlib import Path

from dagster import AssetExecutionContext, Config, Definitions, ResourceParam, asset

from resources.launcher import Launcher
from resources.torchrun import TorchrunLauncher
from tests.support.launched import count
from tts_assets.core.compute import Shape


class Where(Config):
    folder: str


@asset
def hanging(
    context: AssetExecutionContext, config: Where, launcher: ResourceParam[Launcher]
) -> None:
    launcher.run(context, count(Path(config.folder), Shape(processes=1), total=9, wait_at=2))


defs = Definitions([hanging], resources={"launcher": TorchrunLauncher(grace_seconds=30)})
