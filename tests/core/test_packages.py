"""The generic package names resolve to this checkout, and only the face imports Dagster."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FACE = re.compile(r"^(resources|sensors|jobs)/|/(assets|checks|definitions|partitions)\.py$")


@pytest.mark.parametrize("name", ["tts_assets", "resources", "sensors", "jobs"])
def test_generic_names_are_ours(name: str) -> None:
    assert Path(importlib.import_module(name).__file__ or "").is_relative_to(ROOT)


def test_only_the_face_imports_dagster() -> None:
    sources = [p for folder in ("tts_assets", "resources") for p in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    guilty = [
        str(path.relative_to(ROOT))
        for path in sources
        if not FACE.search(str(path.relative_to(ROOT))) and "dagster" in imported(path)
    ]
    assert not guilty


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names
