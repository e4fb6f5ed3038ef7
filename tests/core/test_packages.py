"""The generic package names resolve to this checkout."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["tts_assets", "resources", "sensors", "jobs"])
def test_generic_package_names_resolve_to_this_checkout(name: str) -> None:
    assert Path(importlib.import_module(name).__file__ or "").is_relative_to(ROOT)
