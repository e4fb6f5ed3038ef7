"""Materializes an asset that launches ``tests.support.programs``.

By hand: ``python -m tests.support.launched '{"config": {"run_dir": …, "total": 4}, "shape":
{"processes": 2}, "launcher": {"grace_seconds": 5}}'``; ``"slurm": true`` takes the other launcher,
``"home"`` an instance that other processes see.
"""

import json
import sys
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    DagsterInstance,
    ExecuteInProcessResult,
    MaterializeResult,
    ResourceParam,
    asset,
    materialize,
)
from dagster._utils.interrupts import setup_interrupt_handlers

from resources.launcher import Launcher, Program
from resources.slurm import SlurmLauncher
from resources.torchrun import TorchrunLauncher
from tests.support.programs import CountConfig
from tts_assets.core.compute import Shape


def launch(
    program: Program, launcher: Launcher, home: Path | None = None
) -> ExecuteInProcessResult:
    """One Dagster run of an asset ``counted`` that launches ``program``."""

    @asset
    def counted(
        context: AssetExecutionContext, launcher: ResourceParam[Launcher]
    ) -> MaterializeResult:
        return MaterializeResult(metadata=launcher.run(context, program).facts)

    with DagsterInstance.local_temp(str(home)) if home else DagsterInstance.ephemeral() as instance:
        return materialize(
            [counted], instance=instance, resources={"launcher": launcher}, raise_on_error=False
        )


def count(run_dir: Path, shape: Shape, **config: Any) -> Program:
    return Program("tests.support.programs", CountConfig(run_dir=run_dir, **config), shape)


def metadata(result: ExecuteInProcessResult) -> dict[str, Any]:
    """Of the materialization; an AssertionError with the failure if there is none."""
    assert result.success, failure(result)
    (event,) = result.asset_materializations_for_node("counted")
    return {name: value.value for name, value in event.metadata.items()}


def failure(result: ExecuteInProcessResult) -> str:
    return "\n".join(
        event.event_specific_data.error_display_string
        for event in result.all_events
        if event.is_step_failure
    )


def main() -> None:
    values = json.loads(sys.argv[1])
    setup_interrupt_handlers()  # as a Dagster run worker does: SIGTERM interrupts, too
    kind = SlurmLauncher if values.get("slurm") else TorchrunLauncher
    program = count(**values["config"], shape=Shape(**values["shape"]))
    home = values.get("home")
    result = launch(program, kind(**values["launcher"]), Path(home) if home else None)
    if not result.success:
        print(failure(result))
        sys.exit(1)
    print(json.dumps(metadata(result)))


if __name__ == "__main__":
    main()
