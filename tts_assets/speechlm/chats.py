"""Token ids of texts for training beside speech: conversations and plain texts.

A conversation is written with the chat template of the tokenizer (for example that of
Llama-3-Instruct). Without a template it is::

    System: You are kind.
    User: What is two and two?
    Assistant: Four.<end of text>
    User: And three and three?
    Assistant: Six.<end of text>

The targets are the words of the assistant and the end of its turn. Text after the last answer is
left out. All tokens of a plain text are targets, up to its end of text. Turns are tokenized
separately, as they are when the model answers.

A folder has one row a sample: ``{split}_{ids,learnt}.npy`` (int32 and uint8, all rows one after
another), ``{split}_index.npy`` (int64, the start of each row), and ``{split}_refused.jsonl`` with
the samples that the template cannot express, or whose texts hold control tokens of the tokenizer,
such as ``<|eot_id|>``; their rows are empty.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tts_assets.arrays.arrays import SPLITS, NpyWriter, Split, map_npy
from tts_assets.core.accounting import SetAside, read_set_aside, write_set_aside
from tts_assets.core.artifacts import atomic_write
from tts_assets.core.config import digest_of
from tts_assets.speechlm.formats import TODAY
from tts_assets.speechlm.prompts import NO_IDS, PromptFormat
from tts_assets.speechlm.tokens import Ints, Rows, concatenate
from tts_assets.speechlm.vocabulary import NONVERBALS, tokenizer_digest

Piece = tuple[str, bool]  # a part of a sample, and whether its tokens are targets
VERSION = "2"  # of the folders in the cache
ROWS = 2_000  # samples tokenized at once
# Tokens such as <|eot_id|>, <|s_17|> and </s>; found by a set, as a codec has 65,536 of them.
BRACKETED = re.compile(r"<[^<>\s]{1,80}>")
NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


class ChatIds:
    """The samples of one split: ``rows[i]`` are token ids, ``targets(i)`` marks the targets."""

    def __init__(self, folder: Path, split: Split) -> None:
        starts = map_npy(folder / f"{split}_index.npy", "int64", read=True)
        self.rows = Rows(map_npy(folder / f"{split}_ids.npy", "int32"), starts)
        self._targets: NDArray[np.uint8] = map_npy(folder / f"{split}_learnt.npy", "uint8")
        self.refused = read_set_aside(folder / f"{split}_refused.jsonl")

    def targets(self, row: int) -> NDArray[np.uint8]:
        """1 for each token of a row that is a target, else 0."""
        return self._targets[self.rows.bounds[row] : self.rows.bounds[row + 1]]


def tokenize_texts(texts: Path, prompts: PromptFormat, cache: Path) -> Path:
    """Tokenize a ``texts`` artifact, once, into a folder below ``cache``. Returns the folder.

    Several processes may call it: the first one tokenizes, the others wait.
    """
    tokenizer = prompts.tokenizer
    made_from = [VERSION, str(texts), tokenizer_digest(tokenizer), tokenizer.chat_template]
    folder = cache / digest_of(made_from)[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with atomic_write(folder) as aside:
                aside.mkdir()
                for split in SPLITS:
                    write_chats(texts / f"{split}_samples.jsonl", prompts, aside, split)
    return folder


def write_chats(samples: Path, prompts: PromptFormat, folder: Path, split: Split) -> None:
    """Tokenize a file of samples into ``folder``, :data:`ROWS` samples at a time."""
    ids = NpyWriter(folder / f"{split}_ids.npy", "int32")
    targets = NpyWriter(folder / f"{split}_learnt.npy", "uint8")
    index = NpyWriter(folder / f"{split}_index.npy", "int64")
    refused: list[SetAside] = []
    control = ControlTokens(prompts)
    with samples.open(encoding="utf-8") as lines:
        while piece := [json.loads(line) for line in islice(lines, ROWS)]:
            parts = [_expressed(sample, prompts, control, refused) for sample in piece]
            rows, marks = _tokenized(parts, piece, prompts)
            values, starts = concatenate(rows)
            index.add(starts + ids.length)
            ids.add(values)
            targets.add(concatenate(marks)[0].astype(np.uint8))
    for writer in (ids, targets, index):
        writer.close()
    write_set_aside(folder / f"{split}_refused.jsonl", refused)


class ControlTokens:
    """Finds the control and speech tokens of a tokenizer in texts; nonverbal tags are none."""

    def __init__(self, prompts: PromptFormat) -> None:
        added = prompts.tokenizer.added_tokens_decoder.values()
        controls = {
            each.content for each in added if each.special or BRACKETED.fullmatch(each.content)
        }
        self._bracketed = controls - set(NONVERBALS)
        others = [token for token in controls if not BRACKETED.fullmatch(token)]
        self._others = re.compile("|".join(map(re.escape, others)) or "(?!)")

    def first(self, sample: dict[str, Any]) -> str:
        """The first control token in the texts of a sample, or an empty string."""
        texts = [sample.get("text", ""), *(m["content"] for m in sample.get("messages", ()))]
        for text in texts:
            if match := self._others.search(text):
                return match[0]
            for token in BRACKETED.findall(text):
                if token in self._bracketed:
                    return str(token)
        return ""


def _expressed(
    sample: dict[str, Any],
    prompts: PromptFormat,
    control: ControlTokens,
    refused: list[SetAside],
) -> list[Piece]:
    """The pieces of a sample, or none and a record in ``refused``."""
    if token := control.first(sample):
        refused.append(SetAside(sample["id"], "control token in the text", token))
        return []
    try:
        return pieces_of(sample, prompts.tokenizer)
    except TemplateError as error:
        refused.append(SetAside(sample["id"], "refused by the chat template", str(error)))
        return []


def _tokenized(
    parts: list[list[Piece]], samples: list[dict[str, Any]], prompts: PromptFormat
) -> tuple[list[Ints], list[Ints]]:
    """Ids and target marks of each sample. All pieces go through the tokenizer at once."""
    found = iter(prompts.plain_batch([text for pieces in parts for text, _ in pieces]))
    templated = prompts.tokenizer.chat_template is not None
    rows, marks = [], []
    for pieces, sample in zip(parts, samples, strict=True):
        # A template writes the beginning of a text itself.
        bare = not pieces or (templated and "messages" in sample)
        ids = [NO_IDS if bare else prompts.prefix]
        targets = [np.zeros_like(ids[0])]
        for _, is_target in pieces:
            ids.append(next(found))
            targets.append(np.full(len(ids[-1]), int(is_target)))
        rows.append(np.concatenate(ids))
        marks.append(np.concatenate(targets))
    return rows, marks


def pieces_of(sample: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """The parts of a sample in order.

    Raises TemplateError of jinja2 if the template of the tokenizer cannot express it.
    """
    end = str(tokenizer.eos_token)
    if "text" in sample:
        return [(sample["text"], True), (end, True)]
    messages = sample["messages"]
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    if tokenizer.chat_template is None:
        return plain_turns(messages[: last + 1], end)
    return template_turns(messages[: last + 1], tokenizer)


def plain_turns(messages: list[dict[str, str]], end: str) -> list[Piece]:
    """The parts of a conversation without a template. ``end`` is the end-of-text token."""
    pieces: list[Piece] = []
    for message in messages:
        name, content = NAMES[message["role"]], message["content"].strip()
        if message["role"] == "assistant":
            pieces += [(f"{name}:", False), (f" {content}{end}", True), ("\n", False)]
        else:
            pieces.append((f"{name}: {content}\n", False))
    return pieces[:-1]


def template_turns(
    messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[Piece]:
    """For each answer: the template's text before it, and the text that the answer adds.

    Raises TemplateError if earlier turns change, or an answer is left out.
    """
    pieces: list[Piece] = []
    done = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = render(messages[:number], tokenizer, add_generation_prompt=True)
        answered = render(messages[: number + 1], tokenizer)
        if not (asked.startswith(done) and answered.startswith(asked)):
            raise TemplateError("it writes earlier turns anew, so that none can be told apart")
        if answered == asked:
            raise TemplateError(f"it leaves out the answer {message['content']!r}")
        pieces += [(asked[len(done) :], False), (answered[len(asked) :], True)]
        done = answered
    return pieces


def render(
    messages: list[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation in the template of the tokenizer."""
    text = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        strftime_now=TODAY.strftime,
    )
    assert isinstance(text, str)
    return text
