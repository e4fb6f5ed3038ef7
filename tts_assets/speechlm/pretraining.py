"""What pretraining reads in windows: one stream of token ids of speech, and one of text.

Of each sample, in the order of the arrays:

    {split}_pretraining_codes.npy    <|speech_start|>  codes  <|speech_end|>
    {split}_pretraining_tokens.npy   what the tokenizer begins a text with, the text, end of text

Both are true .npy files, one-dimensional, int32, in the ids of one vocabulary. Window ``i`` of a
model that sees L tokens is ``stream[i * L:(i + 1) * L]``: it begins and ends anywhere, the rest
behind the last whole window is shorter. Mixed pretraining draws windows from both streams.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tts_assets.arrays.arrays import ArrayError, CodeTable, Split
from tts_assets.arrays.npy import NpyWriter, map_npy
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.text_ids import Ints, Rows, TextIds, read_text_ids

ROWS = 10_000  # samples written at once
CODES, TEXTS = "pretraining_codes", "pretraining_tokens"


def write_pretraining(
    table: CodeTable, texts: TextIds, prompts: PromptFormat, folder: Path, split: Split
) -> None:
    """Write both streams of a split."""
    vocabulary = prompts.vocabulary
    speech = NpyWriter(folder / f"{split}_{CODES}.npy", "int32")
    text = NpyWriter(folder / f"{split}_{TEXTS}.npy", "int32")
    end_of_text = prompts.tokenizer.eos_token_id
    for first in range(0, len(table), ROWS):
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
    """Both streams of a split, memory-mapped; a row of each is a sample with its frame.

    ``folder`` is that of one tokenizer. Raises :class:`ArrayError` where a stream is missing or of
    other samples.
    """
    if not (folder / f"{split}_{CODES}.npy").is_file():
        raise ArrayError(
            f"{folder} has no streams for pretraining: set [arrays] pretraining = true and "
            "materialize token_arrays again"
        )
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
    """Each row ``ids[bounds[i]:bounds[i + 1]]`` between ``before`` and ``after``, joined."""
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
    """ROWS rows from ``first`` on, and their bounds from 0."""
    own = bounds[first : first + ROWS + 1]
    return ids[own[0] : own[-1]], own - own[0]
