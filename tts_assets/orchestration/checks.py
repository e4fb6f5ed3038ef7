"""What must hold of every training: it ended with numbers.

The columns of a published table as the UI's catalog shows them: metadata of its asset.
"""

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

TERMS = ("mel", "val_mel", "loudness", "spread", "adversarial", "features", "judges")  # a codec's


def losses_check(trained: AssetsDefinition) -> AssetChecksDefinition:
    """The blocking check ``losses_are_finite`` of an artifact that has a ``metrics.jsonl``."""

    @asset_check(
        asset=trained,
        blocking=True,
        description="No loss of the run, in training or validation, is infinite or not a number.",
    )
    def losses_are_finite(made: Handle) -> AssetCheckResult:
        looked_at, wrong = spoilt_losses(made.path / METRICS_FILE)
        if wrong:
            told = f"{wrong[0]}: lower the learning rate, and materialize it again"
        else:
            told = "" if looked_at else f"{METRICS_FILE} tells no loss"
        return AssetCheckResult(
            passed=looked_at > 0 and not wrong,
            description=told or None,
            metadata={"losses": looked_at, "not_finite": len(wrong)},
        )

    return losses_are_finite


def spoilt_losses(path: Path) -> tuple[int, list[str]]:
    """How many losses a ``metrics.jsonl`` tells, and which of them are not finite, in words."""
    looked_at, wrong = 0, []
    for record in read_metrics(path):
        for name, value in record.items():
            if "loss" in name or name in TERMS:
                looked_at += 1
                if not math.isfinite(value):
                    wrong.append(f"{name} of step {record['step']} is {value}")
    return looked_at, wrong


SCHEMA = "dagster/column_schema"  # the name that the UI looks for


def column_schema(
    columns: Mapping[str, DataType | type[DataType]], about: Mapping[str, str]
) -> dict[str, TableSchema]:
    """Metadata: ``columns`` by name in the table's order; ``about`` says what those hold whose
    name does not."""
    described = [TableColumn(name, str(kind), about.get(name)) for name, kind in columns.items()]
    return {SCHEMA: TableSchema(described)}
