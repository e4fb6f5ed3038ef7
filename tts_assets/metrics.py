"""The ``metrics.jsonl`` of a run: a line a step, and a line a validation."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

METRICS_FILE = "metrics.jsonl"
WINDOW = 1 << 16  # bytes; some 200 lines


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a ``metrics.jsonl``."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def publish_metrics(run_dir: Path, result: Path, without: Collection[str]) -> None:
    """Copy a run's metrics to its ``result``, ``without`` those that tell of the machine and the
    hour: two runs to the same weights are the same content."""
    lines = [
        json.dumps({name: value for name, value in record.items() if name not in without}) + "\n"
        for record in read_metrics(run_dir / METRICS_FILE)
    ]
    (result / METRICS_FILE).write_text("".join(lines))


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after ``step``: the restart will write them again.

    Reads from the end, so that it takes as long after 100,000 steps as after 10. A last line that
    a kill cut short is dropped, too.
    """
    if not path.is_file():
        return
    window = WINDOW
    with path.open("r+b") as stream:
        size = path.stat().st_size
        while True:
            start = max(0, size - window)
            stream.seek(start)
            tail = stream.read()
            first = tail.find(b"\n") + 1 if start else 0  # a window may begin inside a line
            kept = _end_of(tail, first, step)
            if kept > first or not start:
                stream.truncate(start + kept)
                return
            window *= 2


def _end_of(tail: bytes, first: int, step: int) -> int:
    """Where the last whole line of at most ``step`` ends; ``first`` if there is none."""
    end = tail.rfind(b"\n") + 1
    while end > first:
        start = tail.rfind(b"\n", first, end - 1) + 1 or first
        if json.loads(tail[start:end])["step"] <= step:
            return end
        end = start
    return first
