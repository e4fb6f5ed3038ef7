"""Tokenizers: any of the hub's, or a byte-level one made on the spot without a download."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tts_assets.core.config import digest_of
from tts_assets.core.hub import from_hub
from tts_assets.speechlm.config import TokenizerConfig
from tts_assets.speechlm.prompts import INSTRUCTION_STRINGS, PromptFormat
from tts_assets.speechlm.vocabulary import extend_tokenizer

PAD = "<|pad|>"
ANY_LENGTH = 1 << 30  # where no model bounds a text


def byte_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """256 byte tokens and the fixed strings of the prompt formats, one token each.

    Reads any text of any language. A small model trained on an hour of speech learns to spell
    faster from 256 frequent tokens than from thousands of rare ones; the instruction costs 1
    token, not 27.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in INSTRUCTION_STRINGS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer by hub name or folder; its pad token is eos where it has none."""
    tokenizer: PreTrainedTokenizerBase
    with from_hub(name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{name_or_path}: only fast tokenizers (tokenizer.json) are supported, this is "
            f"{type(tokenizer).__name__}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_tokenizer(config: TokenizerConfig, codebook_size: int) -> PromptFormat:
    """The prompt format of a tokenizer with the speech vocabulary of a codec, without a model."""
    tokenizer = byte_tokenizer(ANY_LENGTH) if config.hub is None else load_tokenizer(config.hub)
    return PromptFormat(tokenizer, extend_tokenizer(tokenizer, codebook_size, config.vocabulary))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes whenever a text could get other ids. Padding and truncation, which a call sets and
    leaves set, are no part of it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return digest_of({k: v for k, v in state.items() if k not in ("padding", "truncation")})
