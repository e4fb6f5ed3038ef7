"""The check ``losses_are_finite`` of trained assets, and column schemas for the UI's catalog."""

import math
from collections.abc import Mapping
from pathlib import Path

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetsDefinition,
    TableColumn,
    TableSchema,
    asset_check,
)
from polars import DataType

from tts_assets.core.artifacts import Handle
from tts_assets.core.program import METRICS_FILE, read_metrics

TERMS = (
    "mel",
    "val_mel",
    "loudness",
    "spread",
    "adversarial",
    "features",
    "judges",
)  # losses of codec training


def losses_check(trained: AssetsDefinition) -> AssetChecksDefinition:
    """The blocking check ``losses_are_finite`` of an asset whose artifact has a
    ``metrics.jsonl``."""

    @asset_check(
        asset=trained,
        blocking=True,
        description="No loss of the run, in training or validation, is infinite or not a number.",
    )
    def losses_are_finite(made: Handle) -> AssetCheckResult:
        losses, wrong = invalid_losses(made.path / METRICS_FILE)
        if wrong:
            problem = f"{wrong[0]}: lower the learning rate, and materialize it again"
        else:
            problem = "" if losses else f"{METRICS_FILE} has no loss"
        return AssetCheckResult(
            passed=losses > 0 and not wrong,
            description=problem or None,
            metadata={"losses": losses, "not_finite": len(wrong)},
        )

    return losses_are_finite


def invalid_losses(path: Path) -> tuple[int, list[str]]:
    """The number of losses in a ``metrics.jsonl``, and a message for each that is not finite."""
    losses, wrong = 0, []
    for record in read_metrics(path):
        for name, value in record.items():
            if "loss" in name or name in TERMS:
                losses += 1
                if not math.isfinite(value):
                    wrong.append(f"{name} of step {record['step']} is {value}")
    return losses, wrong


SCHEMA = "dagster/column_schema"  # the metadata key that the UI reads


def column_schema(
    columns: Mapping[str, DataType | type[DataType]], about: Mapping[str, str]
) -> dict[str, TableSchema]:
    """Metadata with the columns of a published table.

    ``columns`` maps names to types in the order of the table; ``about`` has descriptions of columns
    whose names do not suffice.
    """
    described = [TableColumn(name, str(kind), about.get(name)) for name, kind in columns.items()]
    return {SCHEMA: TableSchema(described)}
