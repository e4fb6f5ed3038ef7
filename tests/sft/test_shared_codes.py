"""Embeddings of codes with equal levels, trained together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.sft.conftest import program_values, recipe_values
from tests.sft.test_train import stop_after, train, weights
from tts_assets.core.config import ConfigError
from tts_assets.sft.config import OptimizerConfig, SftProgram, SftRecipe
from tts_assets.sft.optimizer import BETAS, CodeRows, Optimizers, code_rows

LEVELS = (4, 3, 2)
CODES, ROWS, HIDDEN, LR = 24, 30, 8, 1e-2


class Tables(nn.Module):
    """A model that is nothing but its embeddings."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding.from_pretrained(weight.clone(), freeze=False)


def rows() -> torch.Tensor:
    return torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[:CODES]


def optimized(tables: Tables) -> Optimizers:
    config = OptimizerConfig(lr=LR, clip=1e9, share_codes=True)
    return Optimizers(tables, config, CodeRows(rows(), LEVELS))


def gradient(step: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 + step)
    return torch.randn(ROWS, HIDDEN, generator=draw)


def test_the_update_is_that_of_a_table_with_a_shared_part() -> None:
    """W = R + B D with Adam on R and D, written out as two parameters."""
    start = torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(0))
    tables = Tables(start)
    optimizers = optimized(tables)
    features = CodeRows(rows(), LEVELS).features()
    own = nn.Parameter(start.clone())
    shared = nn.Parameter(torch.zeros(features.shape[1], HIDDEN))
    adam = torch.optim.AdamW([own, shared], lr=LR, betas=BETAS, weight_decay=0.0)
    for step in range(4):
        tables.embed_tokens.weight.grad = gradient(step)
        optimizers.step(LR)
        adam.zero_grad()
        placed = torch.zeros(ROWS, HIDDEN).index_copy(0, rows(), features @ shared)
        ((own + placed) * gradient(step)).sum().backward()
        adam.step()
    with torch.no_grad():
        expected = own.clone()
        expected[rows()] += features @ shared
    torch.testing.assert_close(tables.embed_tokens.weight, expected)
    assert not torch.allclose(expected, own)


def test_features_are_what_two_codes_have_in_common() -> None:
    features = CodeRows(torch.arange(CODES), LEVELS).features()
    assert features.shape == (CODES, 4 + 3 + 2 + 12 + 8 + 6)
    # Code 7 is 3 + 1 * 4 + 0 * 12, code 19 is 3 + 1 * 4 + 1 * 12: two digits and a pair are equal.
    assert features[7] @ features[19] == pytest.approx(2 / 3 + 1 / 3)
    assert features[7] @ features[7] == pytest.approx(2)
    assert features[0] @ features[23] == 0  # no digit in common


def test_the_state_can_be_saved_and_read() -> None:
    start = torch.zeros(ROWS, HIDDEN)
    whole, first, second = Tables(start), Tables(start), Tables(start)
    long, short = optimized(whole), optimized(first)
    for step in range(4):
        whole.embed_tokens.weight.grad = gradient(step)
        long.step(LR)
        if step < 2:
            first.embed_tokens.weight.grad = gradient(step)
            short.step(LR)
    resumed = optimized(second)
    resumed.start_after(2)
    with torch.no_grad():
        second.embed_tokens.weight.copy_(first.embed_tokens.weight)
        saved = {kind: moment for kind, _, moment in short.moments()}
        assert {"shared_avg", "shared_avg_sq", "exp_avg", "exp_avg_sq"} == saved.keys()
        for kind, _, moment in resumed.moments():
            moment.copy_(saved[kind])
    for step in (2, 3):
        second.embed_tokens.weight.grad = gradient(step)
        resumed.step(LR)
    assert torch.equal(second.embed_tokens.weight, whole.embed_tokens.weight)


def test_an_interrupted_training_gives_the_same_weights(
    arrays: Path, codec: Path, tmp_path: Path
) -> None:
    optimizer = {"name": "muon", "lr": 3e-3, "share_codes": True}
    programs = {}
    for name in ("whole", "stopped"):
        changes = {"optimizer": optimizer, "steps": 4, "save_every": 2, "eval_every": 4}
        values = program_values(tmp_path / name, arrays, **changes)
        programs[name] = SftProgram.model_validate(values | {"codec_folder": str(codec)})
    train(programs["whole"])
    stop_after(2, programs["stopped"])
    train(programs["stopped"])
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("levels", [None, [CODES], [5, 5]])
def test_codecs_without_levels_are_refused(levels: list[int] | None, tmp_path: Path) -> None:
    values = {} if levels is None else {"quantization_levels": levels}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="needs a codec with one finite scalar quantizer"):
        code_rows(tmp_path, range(CODES))


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "fsdp"},
        {"lora": {"rank": 4}},
        {"optimizer": {"name": "adamw_8bit", "share_codes": True}},
    ],
)
def test_whole_tables_are_needed(changes: dict[str, object]) -> None:
    values = recipe_values(**{"optimizer": {"share_codes": True}, **changes})
    if "lora" in changes:
        values["base"] = {"hub": "some/model"}
    with pytest.raises(ConfigError, match="share_codes trains whole embedding tables"):
        SftRecipe.parse(values, "test")
