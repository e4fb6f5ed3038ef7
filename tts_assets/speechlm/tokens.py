"""The program that makes ``token_arrays``: ``python -m tts_assets.speechlm.tokens run.json``.

The result has a folder for each tokenizer, named by the digest of the tokenizer. It holds the texts
of all samples as token ids and, for pretraining, two token streams. All files are one-dimensional
``.npy`` files with one row a sample, in the order of the arrays.

Texts:

    {split}_text_ids.npy          int32, the text
    {split}_later_ids.npy         int32, the text after a space, as the continuation of another
                                  text: tokenizers join a space to the next word
    {split}_description_ids.npy   int32, the description D of the prompts, often empty
    {split}_…_index.npy           int64, the position at which each row starts

Streams, int32:

    {split}_pretraining_codes.npy    <|speech_start|>  codes  <|speech_end|>
    {split}_pretraining_tokens.npy   prefix of the tokenizer, text, end of text

With a context of L tokens, window i is ``stream[i * L:(i + 1) * L]``. Windows begin and end at any
token, and the last one is shorter. Mixed pretraining draws windows from both streams.

:func:`tokenize_texts` makes token ids of texts for training beside speech: conversations and plain
texts. A conversation is written with the chat template of the tokenizer (for example that of
Llama-3-Instruct). Without a template its turns are the lines ``System: …``, ``User: …`` and
``Assistant: …<end of text>``.

The targets are the words of the assistant and the end of its turn. Text after the last answer is
left out. All tokens of a plain text are targets, up to its end of text. Turns are tokenized
separately, as they are when the model answers. The folder has one row a sample:
``{split}_{ids,learnt}.npy`` (int32 and uint8, all rows one after another), ``{split}_index.npy``
(int64, the start of each row), and ``{split}_refused.jsonl`` with the samples that the template
cannot express, or whose texts hold control tokens of the tokenizer; their rows are empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jinja2 import TemplateError
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedTokenizerBase

from tts_assets.arrays.arrays import SPLITS, ArrayError, CodeTable, NpyWriter, Split, map_npy
from tts_assets.core.accounting import SetAside, read_set_aside, write_set_aside
from tts_assets.core.artifacts import CodeArrays, TokenFacts, atomic_write
from tts_assets.core.config import digest_of
from tts_assets.core.program import Run, load_config
from tts_assets.speechlm.config import TokenProgram
from tts_assets.speechlm.formats import TODAY
from tts_assets.speechlm.prompts import NO_IDS, PromptFormat, describe, open_tokenizer
from tts_assets.speechlm.vocabulary import NONVERBALS, tokenizer_digest

Ints = NDArray[np.int64]
ROWS = 20_000  # texts tokenized at once: all cores are used, and memory stays constant
STREAM_ROWS = 10_000  # samples of the streams written at once
NAMES = ("text", "later", "description")
CODES, TEXTS = "pretraining_codes", "pretraining_tokens"
LIST_FILE = "tokenizers.json"
DESCRIBED = ("voice_description", "emotion", "style")  # fields of a sample that are in D
Piece = tuple[str, bool]  # a part of a sample, and whether its tokens are targets
VERSION = "2"  # of the folders of conversations in the cache
CHAT_ROWS = 2_000  # samples of texts tokenized at once
# Tokens such as <|eot_id|>, <|s_17|> and </s>; found by a set, as a codec has 65,536 of them.
BRACKETED = re.compile(r"<[^<>\s]{1,80}>")
CHAT_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


class Rows:
    """Rows of different lengths: ``rows[i]`` is ``ids[bounds[i]:bounds[i + 1]]``, int32."""

    def __init__(self, ids: NDArray[np.int32], starts: Ints) -> None:
        self.ids = ids
        self.bounds: Ints = np.append(starts, len(ids))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.ids[self.bounds[row] : self.bounds[row + 1]]

    @cached_property
    def lengths(self) -> Ints:
        """The length of each row, shape (rows,)."""
        return np.diff(self.bounds)


@dataclass(frozen=True)
class TextIds:
    """The token ids of every sample: text, text as a continuation, and description."""

    text: Rows
    later: Rows
    description: Rows


def text_ids(table: CodeTable, prompts: PromptFormat) -> TextIds:
    """The token ids of the texts of a table, in memory."""
    pieces = list(_tokenized(table, prompts))
    columns = ([row for piece in pieces for row in piece[i]] for i in range(len(NAMES)))
    return TextIds(*(Rows(*concatenate(rows)) for rows in columns))


def write_text_ids(table: CodeTable, prompts: PromptFormat, folder: Path, split: Split) -> TextIds:
    """Tokenize the texts of a split into ``folder``, :data:`ROWS` at a time, and open them."""
    writers = {
        name: (
            NpyWriter(folder / f"{split}_{name}_ids.npy", "int32"),
            NpyWriter(folder / f"{split}_{name}_index.npy", "int64"),
        )
        for name in NAMES
    }
    for piece in _tokenized(table, prompts):
        for (ids, index), rows in zip(writers.values(), piece, strict=True):
            values, starts = concatenate(rows)
            index.add(starts + ids.length)
            ids.add(values)
    for ids, index in writers.values():
        ids.close()
        index.close()
    return read_text_ids(table, folder, split)


def read_text_ids(table: CodeTable, folder: Path, split: Split) -> TextIds:
    """Open the files of :func:`write_text_ids`, memory-mapped.

    Raises :class:`ArrayError` if they are of other samples.
    """
    found = []
    for name in NAMES:
        ids = map_npy(folder / f"{split}_{name}_ids.npy", "int32")
        starts = map_npy(folder / f"{split}_{name}_index.npy", "int64", read=True)
        if len(starts) != len(table):
            raise ArrayError(
                f"{folder} has texts of {len(starts)} {split} samples, but {table.samples_path} "
                f"holds {len(table)}; materialize token_arrays again"
            )
        found.append(Rows(ids, starts))
    return TextIds(*found)


def concatenate(rows: list[Ints]) -> tuple[NDArray[np.int32], Ints]:
    """The concatenation of ``rows``, and the position at which each starts."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.concatenate([np.empty(0, dtype=np.int64), *rows]).astype(np.int32)
    return ids, np.cumsum(lengths) - lengths


def _tokenized(table: CodeTable, prompts: PromptFormat) -> Iterator[list[list[Ints]]]:
    """Text, continuation and description of up to :data:`ROWS` samples at a time."""
    columns = table.columns("transcript", *DESCRIBED).fill_null("")
    for piece in columns.iter_slices(ROWS):
        texts = piece["transcript"].to_list()
        described = [describe(*tags) for tags in piece.select(DESCRIBED).rows()]
        yield [
            prompts.text_batch(texts),
            prompts.text_batch([" " + text for text in texts]),
            prompts.description_batch(described),
        ]


def write_pretraining(
    table: CodeTable, texts: TextIds, prompts: PromptFormat, folder: Path, split: Split
) -> None:
    """Write both streams of a split, :data:`STREAM_ROWS` samples at a time."""
    vocabulary = prompts.vocabulary
    speech = NpyWriter(folder / f"{split}_{CODES}.npy", "int32")
    text = NpyWriter(folder / f"{split}_{TEXTS}.npy", "int32")
    end_of_text = prompts.tokenizer.eos_token_id
    for first in range(0, len(table), STREAM_ROWS):
        codes, bounds = _piece(table.codes, table.bounds, first)
        ids = vocabulary.ids(codes)
        speech.add(framed(ids, bounds, [vocabulary.speech_start], [vocabulary.speech_end]))
        words, bounds = _piece(texts.text.ids, texts.text.bounds, first)
        text.add(framed(words, bounds, prompts.prefix, [end_of_text]))
    speech.close()
    text.close()


def read_pretraining(
    table: CodeTable, folder: Path, prompts: PromptFormat, split: Split
) -> tuple[Rows, Rows]:
    """The streams of speech and text of a split, memory-mapped, with one row a sample.

    ``folder`` is that of one tokenizer. Raises :class:`ArrayError` if a stream is missing or of
    other samples.
    """
    if not (folder / f"{split}_{CODES}.npy").is_file():
        raise ArrayError(f"{folder} has no streams for pretraining: materialize token_arrays again")
    texts = read_text_ids(table, folder, split).text
    frames = {CODES: (table.bounds, 2), TEXTS: (texts.bounds, len(prompts.prefix) + 1)}
    found = []
    for name, (bounds, frame) in frames.items():
        path = folder / f"{split}_{name}.npy"
        ids = map_npy(path, "int32")
        starts = bounds + frame * np.arange(len(bounds))
        if starts[-1] != len(ids):
            raise ArrayError(
                f"{path} has {len(ids)} tokens, but {starts[-1]} belong to the {len(table)} "
                "samples of the arrays; materialize token_arrays again"
            )
        found.append(Rows(ids, starts[:-1]))
    speech, text = found
    return speech, text


def framed(ids: ArrayLike, bounds: Ints, before: ArrayLike, after: ArrayLike) -> NDArray[np.int32]:
    """Each row ``ids[bounds[i]:bounds[i + 1]]`` between ``before`` and ``after``, concatenated.

    ``bounds`` is (rows + 1,), everything else has one dimension.
    """
    before, after = np.asarray(before), np.asarray(after)
    ends = np.cumsum(np.diff(bounds) + len(before) + len(after))
    starts = np.concatenate([[0], ends[:-1]])
    result = np.empty(ends[-1], dtype=np.int32)
    inside = np.ones(len(result), dtype=bool)
    frame = [(starts + k, token) for k, token in enumerate(before)]
    frame += [(ends - len(after) + k, token) for k, token in enumerate(after)]
    for where, token in frame:
        result[where] = token
        inside[where] = False
    result[inside] = ids
    return result


def _piece(ids: NDArray[np.generic], bounds: Ints, first: int) -> tuple[NDArray[np.generic], Ints]:
    """:data:`STREAM_ROWS` rows from ``first`` on, and their bounds, which start at 0."""
    own = bounds[first : first + STREAM_ROWS + 1]
    return ids[own[0] : own[-1]], own - own[0]


def write_tokens(arrays: CodeArrays, prompts: PromptFormat, folder: Path, pretraining: bool) -> int:
    """Write the files of one tokenizer to ``folder``. Returns the number of text tokens."""
    folder.mkdir(exist_ok=True)
    count = 0
    for split in SPLITS:
        table = CodeTable.of_split(arrays.path, split)
        texts = write_text_ids(table, prompts, folder, split)
        count += len(texts.text.ids)
        if pretraining:
            write_pretraining(table, texts, prompts, folder, split)
    return count


def main(argv: list[str] | None = None) -> None:
    """Make the token arrays of one corpus for all tokenizers of the program file."""
    program = load_config(TokenProgram, argv)
    with Run(program.run_dir) as run:
        arrays = CodeArrays.open(program.arrays)
        counts: dict[str, int] = {}
        for tokenizer in run.progress(program.tokenizers, "tokenizers"):
            prompts = open_tokenizer(tokenizer, arrays.facts.codebook_size, arrays.facts.frame)
            digest = tokenizer_digest(prompts.tokenizer)
            folder = run.result_dir / digest
            counts[digest] = write_tokens(arrays, prompts, folder, program.pretraining)
        (run.result_dir / LIST_FILE).write_text(json.dumps(sorted(counts)) + "\n")
        facts = TokenFacts(corpus=arrays.facts.corpus, text_tokens=counts)
        run.finish(facts.model_dump())


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
    """Tokenize a file of samples into ``folder``, :data:`CHAT_ROWS` samples at a time."""
    ids = NpyWriter(folder / f"{split}_ids.npy", "int32")
    targets = NpyWriter(folder / f"{split}_learnt.npy", "uint8")
    index = NpyWriter(folder / f"{split}_index.npy", "int64")
    refused: list[SetAside] = []
    control = ControlTokens(prompts)
    with samples.open(encoding="utf-8") as lines:
        while piece := [json.loads(line) for line in islice(lines, CHAT_ROWS)]:
            parts = [_expressed(sample, prompts, control, refused) for sample in piece]
            rows, marks = _tokenized_chats(parts, piece, prompts)
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


def _tokenized_chats(
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
        name, content = CHAT_NAMES[message["role"]], message["content"].strip()
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


if __name__ == "__main__":
    main()
