"""Which architectures training computes as themselves, and which it refuses, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tts_assets.core.config import ConfigError
from tts_assets.sft.model import check_function

SIZE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
TRAINED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "smollm3": {},
    "olmo2": {},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": 6, "rope_parameters": None},
    "gpt2": GPT2,
    "starcoder2": {"sliding_window": 7},
    "helium": {"head_dim": 8},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "granite": ({"logits_scaling": 8.0}, "it divides its logits"),
    "cohere": ({"logit_scale": 0.0625}, "it multiplies its logits"),
    "gemma2": ({"head_dim": 8, "final_logit_softcapping": 2.0}, "it caps its logits"),
    "phi": ({}, "its output layer has a bias"),
}


def tiny(kind: str, changes: dict[str, Any]) -> PreTrainedModel:
    """A random model; larger weights than usual, so that the functions differ clearly."""
    values = changes if kind == "gpt2" else SIZE | changes
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
            elif kind == "phi":
                weight.add_(0.5)
    assert isinstance(model, PreTrainedModel)
    return model


@pytest.mark.parametrize("kind", TRAINED)
def test_architectures_that_are_trained_as_themselves(kind: str) -> None:
    model = tiny(kind, TRAINED[kind])
    implementation = model.config._attn_implementation
    check_function(model, kind)
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("kind", REFUSED)
def test_architectures_that_are_refused(kind: str) -> None:
    changes, reason = REFUSED[kind]
    with pytest.raises(ConfigError, match=f"{kind}: .* cannot be trained as itself: .*{reason}"):
        check_function(tiny(kind, changes), kind)


def test_a_window_that_attention_ignores_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_assets.speechlm import ops

    whole = ops._attend
    monkeypatch.setattr(ops, "_attend", lambda *values: whole(*values[:5]))
    with pytest.raises(ConfigError, match="its logits would differ"):
        check_function(tiny("mistral", TRAINED["mistral"]), "mistral")
