"""What the other environment's program tells and is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tts_assets.config import ConfigError
from tts_assets.families.config import FamilyRecipe, FamilyTrainProgram
from tts_assets.families.train import main
from tts_assets.metrics import read_metrics
from tts_assets.program import STOPPED
from tts_assets.split import ValidationSplit

TINY = {
    "hidden_channels": 32,
    "hidden_channels_ffn_text_encoder": 64,
    "num_layers_text_encoder": 1,
    "num_layers_posterior_encoder": 2,
    "num_layers_flow": 1,
    "upsample_initial_channel_decoder": 32,
    "periods_multi_period_discriminator": [2],
}


def program(python: Path, kept: Path, folder: Path, **values: Any) -> Path:
    recipe = {"family": "vits", "corpora": ["clips"], "batch_size": 4, "sample_rate": 16000}
    recipe |= {"log_steps": 1, "config": {"model_args": TINY}}
    config = FamilyTrainProgram(
        run_dir=folder,
        name="tiny",
        python=python,
        recipe=FamilyRecipe.model_validate(recipe | values),
        samples={"clips": kept},
        validation=ValidationSplit(fraction=0.2),
    )
    folder.mkdir()
    (folder / "run.json").write_text(config.to_json())
    return folder / "run.json"


@pytest.mark.parametrize(
    ("python", "says"), [("/nowhere/python", "no interpreter"), (sys.executable, "no coqui-tts")]
)
def test_an_environment_that_lacks_something(
    python: str, says: str, kept: Path, tmp_path: Path
) -> None:
    path = program(Path(python), kept, tmp_path / "run")
    with pytest.raises(ConfigError, match=f"{python} (is|has) {says}"):
        main([str(path)])


@pytest.mark.slow
def test_a_key_that_coqui_does_not_have(coqui: Path, kept: Path, tmp_path: Path) -> None:
    config = {"model_args": {"hidden_chanels": 8}}
    path = program(coqui, kept, tmp_path / "run", config=config)
    with pytest.raises(ConfigError, match=r"config.model_args.hidden_chanels: .* no such key"):
        main([str(path)])


@pytest.mark.slow
def test_a_stop_is_passed_on_and_gone_on_from(coqui: Path, kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = program(coqui, kept, folder, epochs=3)
    command = [sys.executable, "-m", "tts_assets.families.train", str(path)]
    process = subprocess.Popen(command)
    while not (folder / "metrics.jsonl").is_file():
        assert process.poll() is None, "it ended before its first step"
        time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=300) == STOPPED
    assert list((folder / "checkpoints").glob("run-*/checkpoint_*.pth"))
    main([str(path)])
    assert (folder / "result" / "model.safetensors").is_file()
    records = read_metrics(folder / "metrics.jsonl")
    losses = [record["step"] for record in records if "loss_mel" in record]
    assert losses == sorted(losses) and len(losses) >= 6
