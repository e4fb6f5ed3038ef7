"""Running a program in the other environment: errors, stop and resume, fine-tuning."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.external_models.conftest import TINY_VITS, TINY_XTTS
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.config import ConfigError
from tts_assets.core.program import STOPPED, read_metrics
from tts_assets.external_models.config import ExternalRecipe, ExternalTrainProgram
from tts_assets.external_models.train import main

VITS: dict[str, Any] = {"family": "vits", "sample_rate": 16000}
# Writes a model in the format of coqui's published models.
PUBLISH = """
import sys
import torch
from safetensors.torch import load_file
torch.save({"model": load_file(sys.argv[1])}, sys.argv[2])
"""


def program(
    python: Path, kept: Path, folder: Path, family: dict[str, Any] = VITS, **values: Any
) -> Path:
    recipe = {"config": {"model_args": TINY_VITS}, **family, **values}
    recipe |= {"corpora": ["clips"], "batch_size": 4}
    recipe["config"] = {"plot_step": 1, **recipe["config"]}  # each step has a line of metrics
    config = ExternalTrainProgram(
        run_dir=folder,
        name="tiny",
        python=python,
        recipe=ExternalRecipe.model_validate(recipe),
        samples={"clips": kept},
        validation=ValidationSplit(fraction=0.2),
    )
    folder.mkdir()
    (folder / "run.json").write_text(config.to_json())
    return folder / "run.json"


@pytest.mark.parametrize(
    ("python", "message"), [("/nowhere/python", "no interpreter"), (sys.executable, "no coqui-tts")]
)
def test_an_unsuitable_environment_is_refused(
    python: str, message: str, kept: Path, tmp_path: Path
) -> None:
    path = program(Path(python), kept, tmp_path / "run")
    with pytest.raises(ConfigError, match=f"{python} (is|has) {message}"):
        main([str(path)])


@pytest.mark.slow
def test_an_unknown_key_of_coqui_is_refused(coqui: Path, kept: Path, tmp_path: Path) -> None:
    config = {"model_args": {"hidden_chanels": 8}}
    path = program(coqui, kept, tmp_path / "run", config=config)
    with pytest.raises(ConfigError, match=r"config.model_args.hidden_chanels: .* no such key"):
        main([str(path)])


@pytest.mark.slow
def test_stop_and_resume(coqui: Path, kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = program(coqui, kept, folder, epochs=3)
    command = [sys.executable, "-m", "tts_assets.external_models.train", str(path)]
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


@pytest.mark.slow
def test_xtts_is_fine_tuned_from_its_published_files(
    coqui: Path, kept: Path, tmp_path: Path
) -> None:
    """With a tiny learning rate the weights stay as they were published."""
    random = {
        "family": "xtts",
        "epochs": 1,
        "max_seconds": 5.0,
        "config": {"model_args": TINY_XTTS},
    }
    main([str(program(coqui, kept, tmp_path / "random", random))])
    first, published = tmp_path / "random" / "result", tmp_path / "published"
    shutil.copytree(tmp_path / "random" / "checkpoints" / "start", published)
    shutil.copy(first / "config.json", published)
    weights = str(first / "model.safetensors")
    subprocess.run([coqui, "-c", PUBLISH, weights, str(published / "model.pth")], check=True)

    tuned = random | {"model": published, "learning_rate": 1e-12, "seed": 2, "config": {}}
    main([str(program(coqui, kept, tmp_path / "tuned", tuned))])
    old, new = load_file(weights), load_file(tmp_path / "tuned" / "result" / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)

    (published / "dvae.pth").unlink()
    with pytest.raises(ConfigError, match=r"published lacks \['dvae.pth'\]"):
        main([str(program(coqui, kept, tmp_path / "lacking", tuned))])
