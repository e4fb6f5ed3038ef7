"""``tts-assets export gguf``: transformers' own reader of GGUF computes the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.support.speaking import Speaking
from tts_assets.core.config import ConfigError
from tts_assets.export import PROMPT_FILE, write_gguf
from tts_assets.serving.llama_cpp import checked, tensors
from tts_assets.serving.served_model import open_lm, open_prompts, read_card
from tts_assets.speechlm.model import SpeechLM

# Largest difference of a logit, of about 1: rounding of the weights to 11 and 8 bits.
TOLERANCE = {"f16": 2e-3, "q8_0": 5e-2}


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_the_logits_are_those_of_the_serving_model(
    speaking: Speaking, tmp_path: Path, quantization: str
) -> None:
    folder, card = speaking.serving.path, read_card(speaking.serving.path)
    path = write_gguf(folder, card, tmp_path, quantization)  # type: ignore[arg-type]
    assert {one.name for one in tmp_path.iterdir()} == {PROMPT_FILE, path.name}
    ids = json.loads((tmp_path / PROMPT_FILE).read_text())["ids"]
    assert ids == open_prompts(folder, card).inference("good morning").tolist()
    options = {"gguf_file": path.name, "dtype": torch.float32}
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path, **options)
    own: Any = open_lm(folder, card, "cpu").model
    with torch.inference_mode():
        expected, found = (one(torch.tensor([ids])).logits for one in (own, read))
    assert expected.std() > 0.05
    difference = (expected - found).abs().max().item()
    assert 0 < difference < TOLERANCE[quantization] * expected.abs().max().item()


def test_the_file_has_the_speech_vocabulary(speaking: Speaking, tmp_path: Path) -> None:
    folder, card = speaking.serving.path, read_card(speaking.serving.path)
    import gguf

    reader = gguf.GGUFReader(write_gguf(folder, card, tmp_path, "q8_0"))
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    vocabulary = open_prompts(folder, card).vocabulary
    assert len(tokens) == vocabulary.size
    for code in (0, 7, card.codebook_size - 1):
        index = vocabulary.speech_ids[code]
        assert tokens[index] == f"<|s_{code}|>" and kinds[index] == gguf.TokenType.CONTROL
    end = reader.fields["tokenizer.ggml.eos_token_id"].contents()
    assert end == vocabulary.speech_end
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == "Q8_0" and types["blk.0.attn_norm.weight"] == "F32"


def test_other_architectures_are_refused(speaking: Speaking) -> None:
    lm = open_lm(speaking.serving.path, read_card(speaking.serving.path), "cpu")
    config: Any = lm.model.config
    config.rope_parameters = {"rope_type": "llama3", "rope_theta": 1.0, "factor": 8.0}
    with pytest.raises(ConfigError, match="scales its rotary positions"):
        checked(lm)
    config.model_type = "phi3"
    with pytest.raises(ConfigError, match="'phi3'; GGUF is written for llama, qwen2, qwen3"):
        checked(lm)


def test_every_tensor_of_qwen3_has_a_place(speaking: Speaking) -> None:
    lm = open_lm(speaking.serving.path, read_card(speaking.serving.path), "cpu")
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    qwen = SpeechLM(Qwen3ForCausalLM(config), lm.tokenizer, lm.vocabulary)
    names = {name for name, _, _ in tensors(qwen, checked(qwen), "f16")}
    assert {"blk.0.attn_q_norm.weight", "output.weight", "token_embd.weight"} <= names
    assert len(names) == len(qwen.model.state_dict())
