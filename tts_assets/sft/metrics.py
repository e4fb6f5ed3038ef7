"""The ``metrics.jsonl`` of a run: a line a step, and a line a validation."""

from __future__ import annotations

import json
from pathlib import Path

from tts_assets.artifacts import written_aside


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after ``step``: the restart will write them again."""
    if not path.is_file():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    with written_aside(path) as aside:
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept))
