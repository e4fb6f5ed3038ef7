from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.speechlm.conftest import TINY
from tts_assets.speechlm.config import BaseModel, LlamaSize, SamplingConfig, VocabularyConfig
from tts_assets.speechlm.model import SpeechLM, build, draw_like
from tts_assets.speechlm.ops import summed_cross_entropy, token_logprobs
from tts_assets.speechlm.vocabulary import byte_tokenizer


def test_a_saved_model_is_loaded_unchanged(tiny: SpeechLM, tmp_path: Path) -> None:
    tiny.save(tmp_path, SamplingConfig(temperature=0.7))
    again = SpeechLM.load(tmp_path, 300)
    ids = torch.arange(12)[None]
    assert torch.equal(again.model(ids).logits, tiny.model(ids).logits)
    assert again.vocabulary == tiny.vocabulary
    assert again.model.generation_config.temperature == 0.7
    assert again.model.generation_config.eos_token_id == tiny.vocabulary.speech_end
    assert again.parameters == tiny.parameters


def test_a_hub_folder_gets_the_speech_vocabulary(tmp_path: Path) -> None:
    """A text model of 320 rows: its text ids keep their rows, speech rows resemble them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer(128)
    tokenizer.save_pretrained(tmp_path)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=320, tie_word_embeddings=False, **size, **heads)
    text_model = LlamaForCausalLM(config)
    text_model.save_pretrained(tmp_path)
    lm = build(BaseModel(hub=str(tmp_path)), 500, VocabularyConfig(), seed=3)
    known = len(byte_tokenizer(128))
    for old, new in [
        (text_model.get_input_embeddings(), lm.model.get_input_embeddings()),
        (text_model.get_output_embeddings(), lm.model.get_output_embeddings()),
    ]:
        assert new.weight.shape[0] == lm.vocabulary.size
        assert torch.equal(old.weight[:known], new.weight[:known])
        drawn = new.weight[known:]
        assert 0.8 < float(drawn.detach().std() / old.weight[:known].detach().std()) < 1.2
        assert float((drawn[1:] - drawn[:-1]).abs().min(dim=1).values.max()) > 0
    again = build(BaseModel(hub=str(tmp_path)), 500, VocabularyConfig(), seed=3)
    assert torch.equal(
        again.model.get_input_embeddings().weight, lm.model.get_input_embeddings().weight
    )


@pytest.mark.parametrize("order", ["numeric", "lexicographic"])
def test_a_folder_with_speech_keeps_its_ids_and_rows(order: str, tmp_path: Path) -> None:
    """Whatever order the recipe asks for."""
    trained = build(BaseModel(llama=TINY), 300, VocabularyConfig(order=order), seed=5)
    trained.save(tmp_path)
    for wanted in ("numeric", "lexicographic"):
        vocabulary = VocabularyConfig(order=wanted, nonverbals=True)
        lm = build(BaseModel(hub=str(tmp_path)), 300, vocabulary, seed=3)
        assert lm.vocabulary == trained.vocabulary
        for name, value in trained.model.state_dict().items():
            assert torch.equal(lm.model.state_dict()[name], value), name


def test_new_rows_have_the_mean_and_covariance_of_the_old() -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(500, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 3
    new = draw_like(old, 20_000, generator)
    assert torch.allclose(new.mean(0), old.mean(0), atol=0.1)
    assert torch.allclose(torch.cov(new.T), torch.cov(old.T), rtol=0.1, atol=0.3)


@pytest.mark.parametrize("positions", [5, 1024, 2500])
def test_the_chunked_loss_equals_the_plain_loss(positions: int) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(positions, 16, generator=generator, requires_grad=True)
    weight = torch.randn(70, 16, generator=generator, requires_grad=True)
    targets = torch.randint(70, (positions,), generator=generator)
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(plain, (hidden, weight))
    chunked, each = summed_cross_entropy(hidden, weight, targets)
    assert torch.allclose(chunked, plain, rtol=1e-5)
    single = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    assert torch.allclose(each, single, rtol=1e-4, atol=1e-5) and not each.requires_grad
    for ours, theirs in zip(torch.autograd.grad(chunked, (hidden, weight)), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-4)
    summed = -token_logprobs(hidden, weight, targets).sum()
    assert torch.allclose(summed, plain, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(summed, (hidden, weight)), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-4)


def test_an_invalid_base_is_rejected() -> None:
    with pytest.raises(ValidationError, match="exactly one of llama, hub, recipe; got llama, hub"):
        BaseModel(llama=TINY, hub="meta-llama/Llama-3.2-1B-Instruct")
    with pytest.raises(ValidationError, match="got none"):
        BaseModel()
    with pytest.raises(ValidationError, match="not a multiple of kv_heads"):
        LlamaSize(heads=4, kv_heads=3)
    with pytest.raises(ValidationError, match="did you mean 'layers'"):
        LlamaSize.model_validate({"layer": 3})
