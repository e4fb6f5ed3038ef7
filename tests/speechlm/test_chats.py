"""Conversations as token ids: the template, and that only the answers are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tts_assets.speechlm.config import VocabularyConfig
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokens import ChatIds, tokenize_texts, write_chats
from tts_assets.speechlm.vocabulary import byte_tokenizer, extend_tokenizer

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four. "},
    {"role": "user", "content": "Three and three?"},
    {"role": "assistant", "content": "Six, naïve one."},
    {"role": "user", "content": "Thank you."},
]
SAMPLES: list[dict[str, Any]] = [
    {"id": "talk", "messages": TALK},
    {"id": "plain", "text": "Plain text."},
    {"id": "short", "messages": TALK[1:3]},
]
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# The shape of Llama 3's: headers, trimmed contents, a date in the system message.
TEMPLATE = """{{ '<|begin_of_text|>' }}
{%- macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}
{%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{{- head('system') + 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
{%- if m.content == 'refuse' %}{{ raise_exception('not that') }}{% endif %}
{{- head(m.role) + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""


def prompt_format(template: str | None = None) -> PromptFormat:
    tokenizer = byte_tokenizer(2048)
    if template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": list(HEADERS)})
        tokenizer.chat_template = template
    return PromptFormat(tokenizer, extend_tokenizer(tokenizer, 16, VocabularyConfig()))


def write(folder: Path, prompts: PromptFormat, samples: list[dict[str, Any]]) -> ChatIds:
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    write_chats(path, prompts, folder, "train")
    return ChatIds(folder, "train")


def shown(chats: ChatIds, prompts: PromptFormat, row: int) -> tuple[str, list[str]]:
    """A whole sample, and the parts that are targets."""
    ids, targets = chats.rows[row], chats.targets(row)
    cuts = np.flatnonzero(np.diff(targets)) + 1
    parts = zip(np.split(ids, cuts), np.split(targets, cuts), strict=True)
    whole = prompts.tokenizer.decode(ids)
    return whole, [prompts.tokenizer.decode(part) for part, marks in parts if marks[0]]


def test_turns_without_a_template(tmp_path: Path) -> None:
    prompts = prompt_format()
    chats = write(tmp_path, prompts, SAMPLES)
    end = prompts.tokenizer.eos_token
    whole, targets = shown(chats, prompts, 0)
    assert whole == (
        f"System: Be brief.\nUser: Two and two?\nAssistant: Four.{end}\n"
        f"User: Three and three?\nAssistant: Six, naïve one.{end}"
    )
    assert targets == [f" Four.{end}", f" Six, naïve one.{end}"]
    assert shown(chats, prompts, 1) == (f"Plain text.{end}", [f"Plain text.{end}"])
    assert chats.rows[0][-1] == prompts.tokenizer.eos_token_id


def test_turns_of_the_tokenizers_template(tmp_path: Path) -> None:
    prompts = prompt_format(TEMPLATE)
    chats = write(tmp_path, prompts, SAMPLES)
    whole, targets = shown(chats, prompts, 0)
    assert targets == ["Four.<|eot_id|>", "Six, naïve one.<|eot_id|>"]
    rendered = prompts.tokenizer.apply_chat_template(
        TALK[:-1], tokenize=False, strftime_now=lambda form: "26 Jul 2024"
    )
    assert whole == rendered
    assert chats.rows[0].tolist() == prompts.plain_ids(rendered).tolist()
    # The targets follow the prompt that the model gets at inference.
    asked = prompts.tokenizer.apply_chat_template(
        TALK[1:2],
        tokenize=False,
        add_generation_prompt=True,
        strftime_now=lambda form: "26 Jul 2024",
    )
    before = int(np.flatnonzero(chats.targets(2))[0])
    assert chats.rows[2][:before].tolist() == prompts.plain_ids(asked).tolist()
    assert shown(chats, prompts, 1)[1] == [f"Plain text.{prompts.tokenizer.eos_token}"]


def test_the_error_has_the_message_of_the_template(tmp_path: Path) -> None:
    prompts = prompt_format(TEMPLATE)
    refused = [{"role": "user", "content": "refuse"}, TALK[2]]
    chats = write(tmp_path, prompts, [SAMPLES[0], {"id": "odd", "messages": refused}, SAMPLES[2]])
    assert [item.what for item in chats.refused] == ["odd"]
    assert chats.refused[0].detail == "not that"
    assert chats.rows.lengths[1] == 0 and chats.rows.lengths[2] > 0
    forgetful = "(m.content if loop.last or m.role == 'user' else '…')"
    rewriting = TEMPLATE.replace("m.content | trim", forgetful)
    chats = write(tmp_path, prompt_format(rewriting), SAMPLES)
    assert [item.what for item in chats.refused] == ["talk"]
    assert "writes earlier turns anew" in chats.refused[0].detail


def test_ids_are_made_once_a_tokenizer(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for split in ("train", "val"):
        lines = [json.dumps(sample) + "\n" for sample in SAMPLES * 2]
        (texts / f"{split}_samples.jsonl").write_text("".join(lines))
    prompts, cache = prompt_format(), tmp_path / "cache"
    folder = tokenize_texts(texts, prompts, cache)
    made = (folder / "train_ids.npy").stat().st_ino
    assert tokenize_texts(texts, prompts, cache) == folder
    assert (folder / "train_ids.npy").stat().st_ino == made
    other = tokenize_texts(texts, prompt_format(TEMPLATE), cache)
    assert other != folder and len(ChatIds(other, "val").rows) == len(SAMPLES) * 2


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tokenizing_in_parts_changes_nothing(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompt_format()
    whole = write(tmp_path, prompts, SAMPLES)
    ids, bounds = whole.rows.ids.copy(), whole.rows.bounds
    monkeypatch.setattr("tts_assets.speechlm.tokens.CHAT_ROWS", rows)
    again = write(tmp_path, prompts, SAMPLES)
    assert np.array_equal(again.rows.ids, ids) and np.array_equal(again.rows.bounds, bounds)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_texts_with_control_tokens_are_set_aside(tmp_path: Path, template: str | None) -> None:
    prompts = prompt_format(template)
    speech = prompts.tokenizer.convert_ids_to_tokens(prompts.vocabulary.speech_ids[3])
    end = str(prompts.tokenizer.eos_token)
    hostile: list[dict[str, Any]] = [
        {"id": "end", "text": f"An {end} inside."},
        {"id": "speech", "messages": [TALK[1], {"role": "assistant", "content": f"So {speech}."}]},
        {"id": "harmless", "text": "a < b, <laugh> and <p> are text, and [INST]."},
    ]
    chats = write(tmp_path, prompts, hostile)
    assert [(one.what, one.reason, one.detail) for one in chats.refused] == [
        ("end", "control token in the text", end),
        ("speech", "control token in the text", speech),
    ]
    assert [len(chats.rows[row]) > 0 for row in range(3)] == [False, False, True]
