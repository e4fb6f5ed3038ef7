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
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tts_assets.arrays.arrays import SPLITS, ArrayError, CodeTable, NpyWriter, Split, map_npy
from tts_assets.core.artifacts import CodeArrays, TokenFacts
from tts_assets.core.program import Run, load_config
from tts_assets.speechlm.config import TokenProgram
from tts_assets.speechlm.prompts import PromptFormat, describe, open_tokenizer
from tts_assets.speechlm.vocabulary import tokenizer_digest

Ints = NDArray[np.int64]
ROWS = 20_000  # texts tokenized at once: all cores are used, and memory stays constant
STREAM_ROWS = 10_000  # samples of the streams written at once
NAMES = ("text", "later", "description")
CODES, TEXTS = "pretraining_codes", "pretraining_tokens"
LIST_FILE = "tokenizers.json"
DESCRIBED = ("voice_description", "emotion", "style")  # fields of a sample that are in D


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


if __name__ == "__main__":
    main()
