"""Materializes an asset that launches ``tests.programs``: ``python -m tests.launched DIR JSON``."""

import json
import sys
from pathlib import Path

from dagster import AssetExecutionContext, MaterializeResult, asset, materialize
from dagster._utils.interrupts import setup_interrupt_handlers

from resources.launcher import Program
from resources.torchrun import TorchrunLauncher
from tests.programs import CountConfig
from tts_assets.compute import Shape


@asset
def counted(context: AssetExecutionContext, launcher: TorchrunLauncher) -> MaterializeResult:
    arguments = json.loads(sys.argv[2])
    config = CountConfig(run_dir=Path(sys.argv[1]), **arguments)
    outcome = launcher.run(context, Program("tests.programs", config, Shape(processes=2)))
    return MaterializeResult(metadata=outcome.facts)


def main() -> None:
    setup_interrupt_handlers()  # as a Dagster run worker does: SIGTERM interrupts, too
    result = materialize(
        [counted],
        resources={"launcher": TorchrunLauncher(grace_seconds=float(sys.argv[3]))},
        raise_on_error=False,
    )
    if not result.success:
        for event in result.all_events:
            if event.is_step_failure:
                print(event.event_specific_data.error_display_string)
        sys.exit(1)
    (event,) = result.asset_materializations_for_node("counted")
    print(json.dumps({name: value.value for name, value in event.metadata.items()}))


if __name__ == "__main__":
    main()
