"""Small bases of the same structure as public ones: tokenizers, and Llamas with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tts_assets.speechlm.formats import LLASA, ORPHEUS, SpeechFormat

# The turns of Llama 3.2's template, with its date.
LLAMA_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string"
    " + '\n\n<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
)


def bytes_tokenizer(special: list[str], bos: str = "", template: str | None = None) -> Any:
    """A byte-level BPE tokenizer with a few merges and special tokens, as Llama 3 and Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("Ġ", "s"), ("e", "n"), ("s", "e")]
    known = {symbol: index for index, symbol in enumerate([*alphabet, "th", "Ġs", "en", "se"])}
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos or None,
        eos_token=special[-1],
        pad_token=special[-1],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def published(form: SpeechFormat, codebook_size: int) -> Any:
    """A tokenizer as the publisher has it: the control tokens, then the codes."""
    if form in (LLASA, ORPHEUS):
        special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer = bytes_tokenizer(special, special[0], LLAMA_TEMPLATE)
    else:
        tokenizer = bytes_tokenizer(["<|im_start|>", "<|im_end|>"], template=LLAMA_TEMPLATE)
    tokenizer.add_tokens([*form.control, *map(form.code_token, range(codebook_size))])
    if form is ORPHEUS:  # its authors add one token more than there are codes, and one for audio
        tokenizer.add_tokens([form.code_token(codebook_size), "<|audio|>"])
    return tokenizer


def random_base(folder: Path, tokenizer: Any, rows: int) -> dict[str, torch.Tensor]:
    """Save a random Llama with ``rows`` embedding rows and its tokenizer. Returns its weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {name: weight.clone() for name, weight in model.state_dict().items()}
