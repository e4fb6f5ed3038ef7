from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sft.conftest import program_values, recipe_values
from tts_assets.core.config import ConfigError
from tts_assets.settings import load_settings
from tts_assets.sft.config import (
    OptimizerConfig,
    SftProgram,
    SftRecipe,
)
from tts_assets.sft.inputs import MachineError, check_machine
from tts_assets.sft.optimizer import learning_rate

VENDORED = Path(__file__).resolve().parents[2] / "examples" / "models" / "reader-en"


def test_the_vendored_base_has_the_recorded_recipe() -> None:
    """``make base`` trains it again."""
    recipe = load_settings(environment={"TTS_PROFILE": "base"}).sft["reader_en"]
    assert recipe.canonical() == json.loads((VENDORED / "recipe.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2}, "exactly one of steps and epochs"),
        ({"steps": None}, "exactly one of steps and epochs"),
        ({"max_seq_len": 1000}, "does not fit into micro_tokens 900"),
        ({"max_seq_len": 4096, "micro_tokens": 4096}, "above base.llama.max_positions 2048"),
        ({"corpora": {"asterisk": 0.0}}, r"corpora \['asterisk'\] have no positive weight"),
        ({"corpora": {}}, "corpora: "),
        ({"optimiser": {}}, "did you mean 'optimizer'"),
        ({"optimizer": {"name": "adam"}}, "optimizer.name"),
        ({"precision": "fp16"}, "precision"),
        ({"strategy": "zero"}, "strategy"),
        ({"strategy": {"name": "deepspeed", "zero_stage": 3}}, "write strategy = 'zero3'"),
        ({"strategy": {"name": "fsdp"}}, "write strategy = 'fsdp'"),
        (
            {"strategy": "fsdp", "optimizer": {"name": "muon"}},
            "write optimizer.name = 'adamw' or strategy = 'ddp'",
        ),
        ({"strategy": "zero2", "compile": True}, "compile goes with"),
        ({"base": {"hub": "x"}, "lora": {}, "steps": 0}, "base as it is: leave lora out"),
        ({"lora": {"rank": 4}}, "base.llama is none: write base.hub or base.recipe"),
        (
            {"base": {"hub": "x"}, "lora": {}, "optimizer": {"name": "muon"}},
            "write optimizer.name = 'adamw'",
        ),
        ({"base": {"hub": "x"}, "lora": {"r": 4}}, "lora"),
        ({"checkpoints": {"keep_every": 1500}}, "no multiple of save_every 1000"),
        ({"checkpoints": {"best": "val_loss/other"}}, "no metric of this recipe"),
        ({"pretraining": {}}, "leave out concatenate and code_dropout"),
        ({"pretraining": {"text_share": 1.0}}, "text_share"),
        ({"pretraining": {}, "corpora": {"text": 1.0}}, r"\['text'\] would name two: rename one"),
    ],
)
def test_invalid_recipes_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SftRecipe.parse(recipe_values(**changes), "dagster_project.toml")


def test_the_machine_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = SftRecipe.parse(recipe_values(compile=True), "test")
    plain = SftRecipe.parse(recipe_values(strategy="zero2"), "test")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_machine(plain, processes=64)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MachineError, match=r"no-such-compiler is not found.*compile = false"):
        check_machine(compiled, processes=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(MachineError, match="3 processes need a GPU each, and this machine shows 2"):
        check_machine(plain, processes=3)


def test_execution_settings_are_not_part_of_the_weights() -> None:
    sharded = recipe_values(strategy="fsdp", save_every=7, gradient_checkpointing=True)
    plain = SftRecipe.parse(recipe_values(), "test").what()
    assert SftRecipe.parse(sharded, "test").what() == plain
    assert SftRecipe.parse(recipe_values(seed=1), "test").what() != plain


@pytest.mark.parametrize(
    ("changes", "weights", "result"),
    [
        ({"strategy": "fsdp"}, False, False),
        ({"save_every": 7}, False, False),
        ({"checkpoints": {"keep_last": 9, "keep_every": 2000}}, False, False),
        ({"gradient_checkpointing": True, "compile": True}, False, False),
        ({"sample_texts": 2}, False, True),
        ({"sample_every": 3}, False, True),
        ({"checkpoints": {"best": "val_loss/asterisk"}}, True, True),
        ({"export": "best"}, True, True),
        ({"eval_every": 2}, True, True),
    ],
)
def test_settings_that_determine_weights_and_results(
    changes: dict[str, object], weights: bool, result: bool
) -> None:
    plain = SftRecipe.parse(recipe_values(), "test")
    other = SftRecipe.parse(recipe_values(**changes), "test")
    assert (other.what() != plain.what()) == weights
    assert (other.determining() != plain.determining()) == result


def test_a_program_needs_the_arrays_of_its_recipe(tmp_path: Path) -> None:
    values = program_values(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"no code arrays given for corpora \['asterisk'\]"):
        SftProgram.parse(values | {"arrays": {"other": str(tmp_path)}}, "run.json")
    with pytest.raises(ConfigError, match="base_checkpoint goes with a recipe"):
        SftProgram.parse(values | {"base_checkpoint": str(tmp_path)}, "run.json")


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("cosine", 0.55, 0.1), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.1)],
)
def test_schedules(schedule: str, middle: float, last: float) -> None:
    config = OptimizerConfig.model_validate({"lr": 1.0, "schedule": schedule, "warmup_share": 0.01})
    rates = [learning_rate(config, step, 1001) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 11) and rates[11] == pytest.approx(1.0)
    assert rates[505] == pytest.approx(middle, abs=0.01)
    assert rates[-1] == pytest.approx(last)
    assert max(rates) <= 1.0
