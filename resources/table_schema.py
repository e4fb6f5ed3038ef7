"""The columns of a published table as the UI's catalog shows them: metadata of its asset."""

from __future__ import annotations

from collections.abc import Mapping

from dagster import TableColumn, TableSchema
from polars import DataType

SCHEMA = "dagster/column_schema"  # the name that the UI looks for


def column_schema(
    columns: Mapping[str, DataType | type[DataType]], about: Mapping[str, str]
) -> dict[str, TableSchema]:
    """Metadata: ``columns`` by name in the table's order; ``about`` says what those hold whose
    name does not."""
    described = [TableColumn(name, str(kind), about.get(name)) for name, kind in columns.items()]
    return {SCHEMA: TableSchema(described)}
