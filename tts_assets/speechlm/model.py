"""Speech language models: built from scratch or from a hub checkpoint, saved and loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tts_assets.core.hub import MAIN, from_hub, locate
from tts_assets.speechlm.config import BaseModel, LlamaSize, SamplingConfig, VocabularyConfig
from tts_assets.speechlm.vocabulary import (
    SpeechVocabulary,
    byte_tokenizer,
    extend_tokenizer,
    load_tokenizer,
    read_vocabulary,
)

# Small, because sequences are short: with the usual 10,000 most rotary pairs do not complete a turn
# within 1,000 tokens.
ROPE_THETA = 1000.0


class SpeechLM:
    """A causal language model with its tokenizer and its speech vocabulary."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: SpeechVocabulary,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary

    @property
    def parameters(self) -> int:
        """Number of parameters; tied embeddings count once."""
        return sum(p.numel() for p in self.model.parameters())

    @classmethod
    def load(cls, folder: Path, codebook_size: int, dtype: torch.dtype = torch.float32) -> SpeechLM:
        """Load a folder of :meth:`save`. Raises VocabularyError if its files do not fit."""
        tokenizer = load_tokenizer(str(folder))
        vocabulary = read_vocabulary(tokenizer, codebook_size)
        vocabulary.check(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        return cls(model, tokenizer, vocabulary)

    def save(
        self,
        folder: Path,
        sampling: SamplingConfig | None = None,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Write a Hugging Face folder: model.safetensors, tokenizer, generation defaults.

        ``weights``, by name, replace those of the model, where these are sharded over ranks.
        """
        self.model.save_pretrained(folder, safe_serialization=True, state_dict=weights)
        self.tokenizer.save_pretrained(folder)
        self.vocabulary.save(folder)
        generation_config(self, sampling or SamplingConfig()).save_pretrained(folder)


def weights_digest(model: PreTrainedModel) -> str:
    """The SHA-256 of all weights, with their names. It reads every byte: a second per GB."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def generation_config(lm: SpeechLM, sampling: SamplingConfig) -> GenerationConfig:
    """The sampling defaults that transformers and vLLM read from the folder."""
    return GenerationConfig(
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or None,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=lm.vocabulary.speech_end,
        pad_token_id=lm.tokenizer.pad_token_id,
    )


def build(
    base: BaseModel,
    codebook_size: int,
    vocabulary: VocabularyConfig,
    seed: int,
    frame: tuple[int, ...] = (),
) -> SpeechLM:
    """A model to train: from scratch, or from the hub with the speech vocabulary added.

    New weights depend on ``seed`` alone. ``frame``: see ``extend_tokenizer``. Raises ValueError if
    ``base`` is another recipe.
    """
    if base.llama is not None:
        return new_llama(base.llama, codebook_size, vocabulary, seed, frame)
    if base.hub is None:
        raise ValueError(f"base recipe {base.recipe!r} is opened with SpeechLM.load()")
    tokenizer = load_tokenizer(base.hub)
    name, revision = locate(base.hub)
    with from_hub(name):
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision or MAIN, dtype=torch.float32
        )
    known = set(tokenizer.get_vocab().values())
    speech = extend_tokenizer(tokenizer, codebook_size, vocabulary, frame)
    added = sorted(set(tokenizer.get_vocab().values()) - known)
    grow_embeddings(model, added, seed)
    return SpeechLM(model, tokenizer, speech)


def new_llama(
    size: LlamaSize,
    codebook_size: int,
    config: VocabularyConfig,
    seed: int,
    frame: tuple[int, ...] = (),
) -> SpeechLM:
    """A Llama with random weights that depend on ``seed`` alone."""
    tokenizer = byte_tokenizer(size.max_positions, config.phonemes is not None)
    vocabulary = extend_tokenizer(tokenizer, codebook_size, config, frame)
    llama = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=size.tie_embeddings,
        bos_token_id=None,
        eos_token_id=vocabulary.speech_end,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(llama)
    return SpeechLM(model, tokenizer, vocabulary)


@torch.no_grad()
def grow_embeddings(model: PreTrainedModel, added: list[int], seed: int) -> None:
    """Draw the embeddings of the ids ``added``. Grow the tables if they lack rows.

    All other rows keep their weights. New rows are drawn from a normal distribution with the mean
    and covariance of the rows below the first of them, so the logit of a new token starts like that
    of an average token (Hewitt 2021, "Initializing new word embeddings"). ``mean_resizing`` of
    transformers scales the covariance by 1e-9, with which all new rows start nearly equal.
    """
    if not added:  # saves the covariance of 194k rows
        return
    if added[-1] >= len(input_table(model)):
        model.resize_token_embeddings(added[-1] + 1, mean_resizing=False)
    tables = [input_table(model)]
    if not model.config.tie_word_embeddings:
        tables.append(output_table(model))
    generator = torch.Generator().manual_seed(seed)
    for table in tables:
        table[added] = draw_like(table[: added[0]], len(added), generator)


def input_table(model: PreTrainedModel) -> Tensor:
    """The input embeddings, shape (V, H)."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table


def output_table(model: PreTrainedModel) -> Tensor:
    """The output matrix, shape (V, H); in tied models it is the input embeddings."""
    table = model.get_output_embeddings().weight
    assert isinstance(table, Tensor)
    return table


def draw_like(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows from a normal distribution with mean and covariance of ``old`` (n, H)."""
    data = old.double()
    mean = data.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(data.T, correction=0))
    root = vectors * values.clamp_min(0).sqrt()
    noise = torch.randn(count, old.shape[1], generator=generator, dtype=torch.float64)
    return (mean + noise.to(old.device) @ root.T).to(old.dtype)
