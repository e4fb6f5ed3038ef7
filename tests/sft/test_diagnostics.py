"""The diagnostics of validations, against direct computations from all logits and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.sft.conftest import program
from tts_assets.core.program import Run, read_metrics
from tts_assets.sft.epochs import TrainingSample
from tts_assets.sft.train import SftTrainer, build_trainer


@torch.no_grad()
def plain(trainer: SftTrainer) -> dict[str, float]:
    """Each validation utterance alone through transformers, one position at a time."""
    lm, dataset = trainer.lm, trainer.val_data
    lm.model.set_attn_implementation("sdpa")
    found, broken, closed, entropy, codes = 0, 0, 0, 0.0, 0
    for utterance in range(len(dataset)):
        encoded = dataset.encode(TrainingSample((utterance,), 0, 0))
        logits = lm.model(torch.from_numpy(encoded.inputs)[None]).logits[0].float()
        for place, target in enumerate(encoded.targets):
            if place <= encoded.first:  # the text, and <|speech_start|>
                continue
            predicted = int(logits[place].argmax())
            entropy += float(torch.distributions.Categorical(logits=logits[place]).entropy())
            if target == lm.vocabulary.speech_end:
                closed += predicted == target
            else:
                codes += 1
                found += predicted == target
                broken += predicted == lm.vocabulary.speech_end
    lm.model.set_attn_implementation("segments")
    return {
        "val_accuracy": found / codes,
        "val_end_found": closed / len(dataset),
        "val_end_false": broken / codes,
        "val_entropy": entropy / (codes + len(dataset)),
    }


@pytest.mark.parametrize("breaks_off", [False, True])
def test_diagnostics_of_predictions(arrays: Path, tmp_path: Path, breaks_off: bool) -> None:
    with Run(tmp_path) as run:
        trainer = build_trainer(run, program(tmp_path, arrays, optimizer={"lr": 5e-3}))
        for step in range(6):
            trainer.train_step(step)
        if breaks_off:  # it predicts the end instead of the most frequent code
            vocabulary, codes = trainer.lm.vocabulary, trainer.val_data.tables[0].codes
            common = vocabulary.code_to_id[np.bincount(codes).argmax()]
            with torch.no_grad():
                table = trainer.lm.model.get_output_embeddings().weight
                table[vocabulary.speech_end] = 2 * table[common]
        trainer.validate()
    logged = read_metrics(tmp_path / "metrics.jsonl")[-1]
    expected = plain(trainer)
    assert {name: logged[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert (logged["val_end_false"] > 0) == breaks_off
    assert logged["val_accuracy"] > 0


def test_diagnostics_of_weights(arrays: Path, tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        trainer = build_trainer(run, program(tmp_path, arrays, steps=2, eval_every=2))

        def flat() -> torch.Tensor:
            named = trainer.lm.model.named_parameters()
            return torch.cat([p.detach().flatten().double() for _, p in named])

        trainer.train_step(0)
        before = flat()
        trainer.train()
        after = flat()
    logged = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert logged["weight_norm"] == pytest.approx(float(after.norm()), rel=1e-5)
    ratio = float((after - before).norm() / after.norm())
    assert logged["update_ratio"] == pytest.approx(ratio, rel=1e-3, abs=1e-6)
