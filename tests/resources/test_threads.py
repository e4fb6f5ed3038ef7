"""CPU threads of ranks: configuration wins over the environment; too many threads are a warning."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from resources.launcher import Program
from resources.torchrun import TorchrunLauncher
from tests.support.launched import launch, metadata
from tests.support.programs import CountConfig
from tts_assets.core.compute import Shape, too_many_threads

# Instead of an interpreter: writes the number of threads and the result of the program.
SCRIPT = """#!/bin/sh
for last; do :; done
printf '{"threads": "%s"}' "$OMP_NUM_THREADS" > "$(dirname "$last")/result.json"
"""


def threads(count: int) -> dict[str, object]:
    return {"environment": {"OMP_NUM_THREADS": str(count)}}


@pytest.mark.parametrize(
    ("shape", "exported", "threads"),
    [
        ({}, "", "2"),  # cores / ranks
        ({}, "3", "3"),
        (threads(1), "64", "1"),
        ({"cpus": 2}, "64", "1"),
        (threads(5), "64", "5"),
        ({**threads(3), "cpus": 2}, "64", "3"),
    ],
)
def test_configured_threads_win_over_exported_ones(
    shape: dict[str, object], exported: str, threads: str
) -> None:
    values = {"processes": 2, "gpus": 0, **shape}
    assert Shape.model_validate(values).rank_threads(4, exported) == threads


@pytest.mark.parametrize(("shape", "threads"), [({}, "64"), (threads(1), "1")])
def test_a_launched_program_has_the_configured_threads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    shape: dict[str, object],
    threads: str,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    interpreter = tmp_path / "interpreter"
    interpreter.write_text(SCRIPT)
    interpreter.chmod(0o755)
    values = {"processes": 2, "gpus": 0, "python": str(interpreter), **shape}
    config = CountConfig(run_dir=tmp_path / "run", total=1)
    program = Program("tests.support.programs", config, Shape.model_validate(values))
    assert metadata(launch(program, TorchrunLauncher()))["threads"] == threads
    warned = "2 ranks with 64 threads each (OMP_NUM_THREADS is exported) exceed the 4 cores"
    assert (warned in capfd.readouterr().err) == (threads == "64")


@pytest.mark.parametrize(
    ("shape", "cores", "exported", "warning"),
    [
        ({"processes": 2}, 2, "", ""),
        ({"processes": 2, **threads(16)}, 32, "", ""),
        (
            {"processes": 2, **threads(16)},
            2,
            "",
            r"2 ranks with 16 threads .*OMP_NUM_THREADS = '1'",
        ),
        ({"processes": 2}, 8, "8,4", r"8 threads each \(OMP_NUM_THREADS is exported\) exceed"),
        ({"processes": 8}, 2, "", r"8 ranks with 1 threads .* set compute.processes = 2"),
        ({"processes": 2}, 2, "many", ""),
    ],
)
def test_ranks_and_threads_that_exceed_the_cores_are_a_warning(
    shape: dict[str, object], cores: int, exported: str, warning: str
) -> None:
    found = too_many_threads(Shape.model_validate({"gpus": 0, **shape}), cores, exported)
    assert re.search(warning, found) if warning else not found
