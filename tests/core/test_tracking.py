"""Weights & Biases in offline mode, beside the metrics of launched programs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launched import count, launch, metadata
from tests.support.programs import CountConfig
from tts_assets.core.compute import Compute, Shape
from tts_assets.core.config import ConfigError
from tts_assets.core.program import STOPPED
from tts_assets.core.tracking import CONFIG_FILE, ID_FILE, WandbConfig, keep_files, write_card
from tts_assets.definitions import build_launcher

ROOT = Path(__file__).resolve().parents[2]
BLOCK, HEADER = 32768, 7  # of LevelDB's log format, after 7 bytes of W&B's own


def records(folder: Path) -> Iterator[Any]:
    """What one ``*.wandb`` file holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data, place, whole = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # too little room in the block for another
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(whole)
            whole = b""


def history(folder: Path) -> list[dict[str, float]]:
    """The metrics in it."""
    rows = [record.history for record in records(folder) if record.HasField("history")]
    found = [{item.key or item.nested_key[0]: item.value_json for item in row.item} for row in rows]
    return [{k: json.loads(v) for k, v in row.items() if not k.startswith("_")} for row in found]


def runs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("offline-run-*") if path.is_dir())


def start(config: CountConfig, **environment: str) -> subprocess.Popen[str]:
    path = config.run_dir / "run.json"
    path.write_text(config.to_json())
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.programs", str(path)],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stderr=subprocess.PIPE,
    )


def test_offline_metrics_are_stored_without_network_access(tmp_path: Path) -> None:
    write_card(tmp_path, WandbConfig(project="voices"), "sft/one")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        process = start(
            CountConfig(run_dir=tmp_path, total=3),
            **dict.fromkeys(["HTTP_PROXY", "HTTPS_PROXY"], address),
            HOME=str(tmp_path / "home"),
            WANDB_TAGS="a,b",
        )
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    (folder,) = runs(tmp_path / "wandb")
    assert history(folder) == [{"step": step, "count": step + 1} for step in range(3)]
    (run,) = (record.run for record in records(folder) if record.HasField("run"))
    assert (run.project, run.display_name, list(run.tags)) == ("voices", "sft/one", ["a", "b"])
    assert run.run_id == (tmp_path / "wandb" / ID_FILE).read_text()
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_a_resumed_program_continues_its_wandb_run(tmp_path: Path) -> None:
    write_card(tmp_path, WandbConfig(project="voices"), "sft/one")
    process = start(CountConfig(run_dir=tmp_path, total=1000, step_seconds=0.05))
    saved = tmp_path / "checkpoints" / "count.txt"
    while not saved.is_file() or int(saved.read_text()) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == STOPPED
    reached = int(saved.read_text())
    time.sleep(1)  # W&B names its folders by the second
    process = start(CountConfig(run_dir=tmp_path, total=reached + 2))
    process.communicate(timeout=120)
    first, second = runs(tmp_path / "wandb")
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]
    steps = [row["step"] for folder in (first, second) for row in history(folder)]
    assert steps == list(range(reached + 2))
    keep_files(tmp_path, tmp_path / "kept")
    assert [path.name for path in runs(tmp_path / "kept")] == [first.name, second.name]


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ({"project": "voices", "mode": "online"}, "API key"),
        ({"project": "a/b"}, "project"),
        ({"project": "voices", "api_key": "secret-word"}, "unknown key 'api_key'"),
    ],
)
def test_an_error_of_wandb_is_logged_and_does_not_end_the_program(
    tmp_path: Path, card: dict[str, str], why: str
) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(card))
    process = start(
        CountConfig(run_dir=tmp_path, total=3), HOME=str(tmp_path), WANDB_MODE="offline"
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert errors.count("Weights & Biases gets no more metrics") == 1
    assert why in errors and "wandb login" in errors and "secret-word" not in errors
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_launcher_turns_wandb_on_and_off(tmp_path: Path) -> None:
    shape = Shape(processes=1)
    on = build_launcher(Compute(), WandbConfig(project="voices"))
    assert metadata(launch(count(tmp_path, shape, total=2), on))["counted"] == 2
    (folder,) = runs(tmp_path / "wandb")
    assert [row["count"] for row in history(folder)] == [1, 2]
    (tmp_path / "result.json").unlink()
    metadata(launch(count(tmp_path, shape, total=4), build_launcher(Compute())))
    assert len(runs(tmp_path / "wandb")) == 1


def test_an_api_key_in_the_project_file_is_rejected() -> None:
    with pytest.raises(ConfigError, match="unknown key 'api_key'"):
        WandbConfig.parse({"project": "voices", "api_key": "0123"}, "dagster_project.toml")
