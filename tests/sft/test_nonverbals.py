"""Tags such as <laugh> in transcripts, from a corpus to token ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.sft.conftest import program
from tts_assets.core.program import Run
from tts_assets.sft.epochs import TrainingSample
from tts_assets.sft.train import build_trainer


@pytest.fixture
def tagged(arrays: Path, tmp_path: Path) -> Path:
    """The arrays with a laugh in three of the training transcripts."""
    folder = tmp_path / "tagged"
    shutil.copytree(arrays, folder)
    lines = (folder / "train_samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    for sample in samples[:3]:
        sample["transcript"] = "<laugh> " + sample["transcript"]
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    (folder / "train_samples.jsonl").write_text(text)
    return folder


def test_a_tag_is_one_token_of_a_sample(
    tagged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = program(tmp_path / "run", tagged, vocabulary={"nonverbals": True})
    with Run(config.run_dir) as run:
        trainer = build_trainer(run, config)
    laugh = trainer.lm.tokenizer.convert_tokens_to_ids("<laugh>")
    dataset = trainer.train_data
    found = [list(dataset.encode(TrainingSample((u,), 0, 0)).inputs).count(laugh) for u in range(5)]
    assert found == [1, 1, 1, 0, 0]
    assert "tags" not in capfd.readouterr().err


def test_tags_without_tokens_are_logged_once(
    tagged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = program(tmp_path / "run", tagged)
    with Run(config.run_dir) as run:
        build_trainer(run, config)
    logged = [line for line in capfd.readouterr().err.splitlines() if "tags" in line]
    assert len(logged) == 1
    assert logged[0].startswith("3 transcripts of asterisk have tags such as <breathe>")
    assert "Write vocabulary.nonverbals = true" in logged[0]
