"""Interrupts a training, resumes it, and compares it with an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tts_assets.core.artifacts import sha256_file
from tts_assets.core.program import METRICS_FILE, STOPPED, ProgramConfig, Run
from tts_assets.core.training import StepLoop

P = TypeVar("P", bound=ProgramConfig)


def assert_same_bytes_after_a_stop(
    folder: Path,
    write: Callable[[Path], P],
    trainer: Callable[[Run, P], StepLoop],
    main: Callable[[list[str]], None],
    after: int,
) -> Path:
    """A run that is asked to stop in its step ``after``, and started again, publishes the files
    and the metrics of one that was not. ``write`` makes a run folder with its ``run.json``.

    Returns the interrupted run's folder.
    """
    whole, parts = folder / "whole", folder / "parts"
    write(whole)
    main([str(whole / "run.json")])
    program = write(parts)
    with Run(parts) as run, pytest.raises(SystemExit) as stopped:
        ask_to_stop(run, trainer(run, program), after)
    assert stopped.value.code == STOPPED
    main([str(parts / "run.json")])
    files = [path for path in sorted((whole / "result").rglob("*")) if path.is_file()]
    assert files
    for file in files:
        other = parts / file.relative_to(whole)
        assert sha256_file(other) == sha256_file(file), file.name
    assert (parts / METRICS_FILE).read_text() == (whole / METRICS_FILE).read_text()
    return parts


def ask_to_stop(run: Run, trainer: StepLoop, after: int) -> None:
    """Train, with a request to stop in the ``after``-th step."""
    take = trainer.train_step

    def asked(step: int) -> dict[str, float]:
        run.stop_requested = step + 1 == after
        return take(step)

    trainer.train_step = asked  # type: ignore[method-assign]
    trainer.train()
