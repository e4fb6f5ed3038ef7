"""A corpus that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def corpus(clips: Path, tmp_path: Path) -> Path:
    """A copy of the clips."""
    return Path(shutil.copytree(clips, tmp_path / "corpus"))
