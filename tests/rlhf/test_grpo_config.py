"""TRL gets every setting of a recipe that belongs to the algorithm."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tts_assets.core.program import Run
from tts_assets.rlhf.config import RlhfRecipe, VllmRollouts
from tts_assets.speechlm.config import LlamaSize, VocabularyConfig
from tts_assets.speechlm.generate import Completion, Request
from tts_assets.speechlm.model import new_llama

# Settings that this project uses itself: TRL gets none of them.
OWN_SETTINGS = {
    "lora_rank",  # TRL gets it as peft's configuration, beside its own
    "strategy",  # TRL gets it where there are several ranks: test_train.py
    *("base", "prompts", "rewards", "combine", "reward_workers", "reward_devices"),
    *("engine", "heldout", "alarms", "stop_on_collapse", "audio_every"),
}
# What TRL gets for the default recipe, beside the settings below.
CONSTANTS = {
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "shuffle_dataset": False,
    "save_total_limit": 2,
    "logging_first_step": False,
    "logging_nan_inf_filter": False,
    "report_to": [],
    "use_vllm": False,
}
DEFAULTS = {
    "max_steps": 1000,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 2,
    "num_generations": 8,
    "num_iterations": 1,
    "max_completion_length": 1025,
    "temperature": 1.1,
    "learning_rate": 5e-6,
    "warmup_steps": 0,
    "lr_scheduler_type": "constant_with_warmup",
    "beta": 0.04,
    "epsilon": 0.2,
    "epsilon_high": 0.2,
    "loss_type": "dr_grpo",
    "scale_rewards": "none",
    "save_steps": 50,
    "logging_steps": 1,
    "seed": 777,
    "gradient_checkpointing": False,
}
# For each setting a value that is not the default, and what changes in TRL's configuration.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "steps": (7, {"max_steps": 7}),
    "prompts_per_step": (4, {"gradient_accumulation_steps": 1}),
    "generations": (4, {"num_generations": 4, "gradient_accumulation_steps": 1}),
    "iterations": (
        3,
        {"num_iterations": 3, "max_steps": 3000, "save_steps": 150, "logging_steps": 3},
    ),
    "sampling": (
        {"temperature": 0.7, "max_tokens": 99},
        {"temperature": 0.7, "max_completion_length": 100},
    ),
    "learning_rate": (3e-4, {"learning_rate": 3e-4}),
    "warmup_steps": (11, {"warmup_steps": 11}),
    "schedule": ("cosine", {"lr_scheduler_type": "cosine"}),
    "beta": (0.5, {"beta": 0.5}),
    "clip": (0.3, {"epsilon": 0.3, "epsilon_high": 0.3}),
    "clip_high": (0.28, {"epsilon_high": 0.28}),
    "loss": ("dapo", {"loss_type": "dapo"}),
    "scale_rewards": ("group", {"scale_rewards": "group"}),
    "micro_batch": (16, {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4}),
    "save_every": (5, {"save_steps": 5}),
    "seed": (1, {"seed": 1}),
    "gradient_checkpointing": (True, {"gradient_checkpointing": True}),
}


def trl_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Returns TRL's configuration of a recipe with ``changes``."""
    from tts_assets.rlhf.train import grpo_config

    values = {"base": "a", "prompts": {"texts": "x.txt"}, **changes}
    found: dict[str, Any] = grpo_config(RlhfRecipe.parse(values, "test"), Run(folder)).to_dict()
    return {**found, "epsilon_high": found["epsilon_high"] or found["epsilon"]}


def test_every_setting_is_either_used_here_or_tested_below() -> None:
    assert {*RlhfRecipe.model_fields} == OWN_SETTINGS | {*CHANGES}


@pytest.mark.slow
def test_trl_gets_the_defaults(tmp_path: Path) -> None:
    found = trl_settings(tmp_path)
    expected = DEFAULTS | CONSTANTS
    assert {name: found[name] for name in expected} == expected
    assert found["output_dir"] == str(tmp_path / "checkpoints")


@pytest.mark.parametrize("setting", CHANGES)
def test_a_changed_setting_changes_what_trl_gets(setting: str, tmp_path: Path) -> None:
    value, expected = CHANGES[setting]
    before, after = trl_settings(tmp_path), trl_settings(tmp_path, **{setting: value})
    changed = {name for name in DEFAULTS if after[name] != before[name]}
    assert {name: after[name] for name in expected} == expected
    assert changed == {*expected}


def test_peft_gets_the_rank_of_the_adapters() -> None:
    from peft import get_peft_model

    from tts_assets.rlhf.trainer import adapter_config

    size = LlamaSize(hidden_size=32, intermediate_size=64, layers=2, heads=2, kv_heads=2)
    model = new_llama(size, 64, VocabularyConfig(), seed=0).model
    values = {"base": "a", "prompts": {"texts": "x.txt"}}
    assert adapter_config(RlhfRecipe.parse(values, "test"), model) is None
    config = adapter_config(RlhfRecipe.parse({**values, "lora_rank": 4}, "test"), model)
    assert config is not None and (config.r, config.lora_alpha) == (4, 8)
    adapted = get_peft_model(model, config)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2, "A and B of each matrix of a layer"
    assert not any("embed" in name or "lm_head" in name for name in trained)


def test_adapters_change_the_fingerprint_and_checkpointing_does_not() -> None:
    def known(**changes: Any) -> dict[str, Any]:
        values = {"base": "a", "prompts": {"texts": "x.txt"}, **changes}
        return RlhfRecipe.parse(values, "test").identity()

    assert "lora_rank" not in known() and known(lora_rank=4)["lora_rank"] == 4
    assert known(gradient_checkpointing=True) == known()


def test_the_path_of_the_prompt_texts_is_not_in_the_fingerprint() -> None:
    def known(texts: str) -> dict[str, Any]:
        rewards = [{"kind": "wer"}]
        values = {"base": "a", "prompts": {"texts": texts}, "rewards": rewards, "steps": 1}
        return RlhfRecipe.parse(values, "test").identified().identity()

    assert known("/here/texts.txt") == known("/moved/texts.txt")
    assert "texts.txt" not in str(known("/here/texts.txt"))


def test_completions_that_the_policy_would_not_sample_count_less() -> None:
    """Importance sampling: the ratio of both probabilities at temperature 1, up to a cap."""
    from tts_assets.rlhf.rollouts import full_logprobs, importance_ratio

    size = LlamaSize(hidden_size=32, intermediate_size=64, layers=1, heads=2, kv_heads=2)
    lm = new_llama(size, 64, VocabularyConfig(), seed=0)
    request = Request(np.arange(4), seed=0)
    codes = lm.vocabulary.code_to_id[:5]
    completion = Completion(codes, False, codes, np.zeros(5, np.float32))
    own = full_logprobs(lm, request, completion).numpy()
    for shift, expected in ((0.0, 1.0), (0.1, math.exp(-0.5)), (-0.1, math.exp(0.5)), (-0.3, 0.0)):
        sampled = replace(completion, logprobs=own + np.float32(shift))
        assert float(importance_ratio(lm, request, sampled)) == pytest.approx(expected, rel=1e-4)


def test_rollouts_that_are_not_in_float32_are_corrected() -> None:
    import torch

    from tts_assets.rlhf.train import inexact_engine

    cpu, gpu, half = torch.device("cpu"), torch.device("cuda"), VllmRollouts(dtype="bfloat16")
    assert not inexact_engine(VllmRollouts(), torch.float32, cpu)
    assert not inexact_engine(VllmRollouts(dtype="float32"), torch.float32, gpu)
    assert inexact_engine(VllmRollouts(), torch.float32, gpu)
    assert inexact_engine(half, torch.float32, cpu)
    assert inexact_engine(half, torch.bfloat16, gpu)  # other kernels round otherwise
