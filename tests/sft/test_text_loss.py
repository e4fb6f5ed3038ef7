"""The loss of the texts beside that of speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.sft.conftest import CODEBOOK, program
from tests.sft.test_train import train
from tts_assets.core.program import Run, read_metrics
from tts_assets.sft.epochs import TrainingSample
from tts_assets.sft.packing import pack
from tts_assets.sft.train import SftTrainer, build_trainer

WEIGHT = 0.3
ROWS = {"micro_tokens": 800, "batch_tokens": 2600}  # several rows a step


@pytest.fixture
def trainer(arrays: Path, tmp_path: Path) -> SftTrainer:
    config = program(tmp_path / "run", arrays, text_loss_weight=WEIGHT, **ROWS)
    with Run(config.run_dir) as run:
        return build_trainer(run, config)


def text_of(targets: Tensor, trainer: SftTrainer) -> str:
    return trainer.lm.tokenizer.decode(targets)


def test_text_targets_are_the_text_and_its_end(trainer: SftTrainer) -> None:
    dataset = trainer.train_data
    samples = [dataset.encode(TrainingSample(utterances, 0, 0)) for utterances in [(0,), (3, 1, 2)]]
    row = pack(samples, [1, 0], text=True)
    texts = [dataset.transcript(0), " ".join(dataset.transcript(u) for u in (3, 1, 2))]
    expected = "".join(f"{text}<|text_prompt_end|>" for text in texts)
    assert text_of(row.targets[-row.text_targets :], trainer) == expected
    following = row.input_ids[0][row.where[-row.text_targets :] + 1]
    assert torch.equal(following, row.targets[-row.text_targets :])
    plain = pack(samples, [1, 0])
    spoken = len(plain.targets)
    assert len(row.targets) == spoken + row.text_targets and plain.text_targets == 0
    for name in ("where", "targets", "sources"):
        assert torch.equal(getattr(row, name)[:spoken], getattr(plain, name)), name
    first_text = len(trainer.lm.tokenizer(texts[0])["input_ids"]) + 1
    assert row.sources[spoken:].tolist() == [1] * first_text + [0] * (row.text_targets - first_text)


def test_loss_and_gradient_are_those_of_the_formula(trainer: SftTrainer) -> None:
    """Means over the whole batch, though it comes in several rows."""
    batch = trainer.loader.stream.batch()
    rows = list(trainer.sharding.rows(trainer.train_data, batch))
    assert len(rows) > 2
    losses = trainer.backward(rows, trainer.step_metrics(trainer.train_data, rows))
    parameters = list(trainer.lm.model.parameters())
    gradients = [parameter.grad.clone() for parameter in parameters]
    trainer.lm.model.zero_grad()

    trainer.lm.model.set_attn_implementation("sdpa")
    speech, text = [], []
    for sample in (trainer.train_data.encode(sample) for sample in batch):
        logits = trainer.lm.model(torch.from_numpy(sample.inputs)[None]).logits[0]
        each = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(sample.targets), reduction="none"
        )
        speech.append(each[sample.first :])
        text.append(each[slice(*sample.text)])
    speech_loss, text_loss = torch.cat(speech).mean(), torch.cat(text).mean()
    whole = speech_loss + WEIGHT * text_loss
    whole.backward()
    assert losses["speech_loss"] == pytest.approx(float(speech_loss.detach()), rel=1e-5)
    assert losses["text_loss"] == pytest.approx(float(text_loss.detach()), rel=1e-5)
    assert losses["loss"] == pytest.approx(float(whole.detach()), rel=1e-5)
    for ours, parameter in zip(gradients, parameters, strict=True):
        assert torch.allclose(ours, parameter.grad, atol=1e-6, rtol=1e-3)


def test_both_losses_are_reported_and_fall(arrays: Path, tmp_path: Path) -> None:
    optimizer = {"lr": 5e-3, "warmup_share": 0.0}
    kept = {"best": "val_text_loss"}
    changes = {"steps": 12, "eval_every": 6, "optimizer": optimizer, "checkpoints": kept}
    train(program(tmp_path, arrays, text_loss_weight=WEIGHT, **changes))
    records = read_metrics(tmp_path / "metrics.jsonl")
    for prefix in ("", "val_"):
        told = [r for r in records if f"{prefix}loss" in r]
        for record in told:
            parts = record[f"{prefix}speech_loss"], record[f"{prefix}text_loss"]
            assert record[f"{prefix}loss"] == pytest.approx(parts[0] + WEIGHT * parts[1], abs=1e-5)
        assert told[-1][f"{prefix}text_loss"] < told[0][f"{prefix}text_loss"]
        assert told[-1][f"{prefix}speech_loss"] < told[0][f"{prefix}speech_loss"]
    chance = np.log(CODEBOOK + 256)
    assert records[0]["text_loss"] == pytest.approx(chance, abs=1.5)


def test_without_a_weight_no_text_loss_is_reported(arrays: Path, tmp_path: Path) -> None:
    train(program(tmp_path, arrays, steps=2))
    assert not any("text" in name for r in read_metrics(tmp_path / "metrics.jsonl") for name in r)
