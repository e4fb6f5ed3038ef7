"""Launched programs by hand, without torchrun and without Dagster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.foreground import latest_progress
from tests.support.programs import CountConfig
from tts_assets.core import program
from tts_assets.core.program import STOPPED, Run, duration, load_config

ROOT = Path(__file__).resolve().parents[2]


def run(config: CountConfig) -> subprocess.Popen[str]:
    path = config.run_dir / "run.json"
    path.write_text(config.to_json())
    command = [sys.executable, "-m", "tests.support.programs", str(path)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)


def test_writes_metrics_progress_and_result(tmp_path: Path) -> None:
    process = run(CountConfig(run_dir=tmp_path, total=3))
    process.communicate(timeout=120)
    assert process.returncode == 0
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert metrics == [{"step": step, "count": step + 1} for step in range(3)]
    last = json.loads((tmp_path / "progress.jsonl").read_text().splitlines()[-1])
    assert last == {"what": "counting", "done": 3, "total": 3}
    assert json.loads((tmp_path / "result.json").read_text())["counted"] == 3
    assert (tmp_path / "result" / "count.txt").read_text() == "3\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1, "stop"])
def test_a_stop_saves_and_a_restart_resumes(tmp_path: Path, how: signal.Signals | str) -> None:
    process = run(CountConfig(run_dir=tmp_path, total=1000, step_seconds=0.02))
    saved = tmp_path / "checkpoints" / "count.txt"
    while not saved.is_file() or int(saved.read_text()) < 3:
        time.sleep(0.02)
    if isinstance(how, str):
        (tmp_path / how).touch()
    else:
        process.send_signal(how)
    process.communicate(timeout=120)
    assert process.returncode == STOPPED
    assert not (tmp_path / "result.json").exists()
    reached = int(saved.read_text())
    again = run(CountConfig(run_dir=tmp_path, total=reached + 1))
    again.communicate(timeout=120)
    assert json.loads((tmp_path / "result.json").read_text())["started_from"] == reached


def test_progress_has_the_newest_metrics_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In progress.jsonl, in the log of the Dagster run, and in the terminal of ``make demo``."""
    monkeypatch.setattr(program, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(program, "PIPES_SECONDS", 0.0)
    clock = [0.0]
    monkeypatch.setattr(program, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    logged: list[str] = []
    with Run(tmp_path / "sft-1") as run:
        run._pipes = cast(Any, SimpleNamespace(log=SimpleNamespace(info=logged.append)))
        for step in run.progress(range(2, 5), "sft", total=6, start=2):
            run.metrics(step + 1, {"loss": 3.21987, "lr": 0.1, "tokens_per_second": 1234.5})
            if step == 3:
                run.metrics(step + 1, {"val_loss": 3.5})
            clock[0] += 50.0
        run._pipes = None
    assert logged[:2] == [
        "sft: 3/6, loss 3.22, 1,234 tokens/s, 2 min left",
        "sft: 4/6, loss 3.22, validation loss 3.5, 1,234 tokens/s, 2 min left",
    ]
    last = json.loads((tmp_path / "sft-1" / "progress.jsonl").read_text().splitlines()[-1])
    assert last["metrics"] == {"loss": 3.21987, "tokens_per_second": 1234.5, "val_loss": 3.5}
    written = (tmp_path / "sft-1" / "progress.jsonl").stat().st_mtime
    assert latest_progress(tmp_path, since=written + 1) == ""  # that of an earlier run
    bar = latest_progress(tmp_path)
    assert bar.endswith("░ 5/6, loss 3.22, validation loss 3.5, 1,234 tokens/s, 50 s left")


def test_an_invalid_key_is_reported_with_the_nearest_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"run_dir": str(tmp_path), "total": 1, "step_second": 2}))
    with pytest.raises(SystemExit):
        load_config(CountConfig, [str(path)])
    assert "unknown key 'step_second' in CountConfig: did you mean 'step_seconds'?" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.4, "4 s"), (89, "89 s"), (90, "2 min"), (11_100, "3 h 05 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
