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

from tts_assets.arrays.arrays import CodeTable, Split
from tts_assets.arrays.npy import NpyWriter
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.text_ids import Ints, TextIds

ROWS = 10_000  # samples written at once


def write_pretraining(
    table: CodeTable, texts: TextIds, prompts: PromptFormat, folder: Path, split: Split
) -> None:
    """Write both streams of a split."""
    vocabulary = prompts.vocabulary
    speech = NpyWriter(folder / f"{split}_pretraining_codes.npy", "int32")
    text = NpyWriter(folder / f"{split}_pretraining_tokens.npy", "int32")
    end_of_text = prompts.tokenizer.eos_token_id
    for first in range(0, len(table), ROWS):
        codes, bounds = _piece(table.codes, table.bounds, first)
        ids = vocabulary.ids(codes)
        speech.add(framed(ids, bounds, [vocabulary.speech_start], [vocabulary.speech_end]))
        words, bounds = _piece(texts.text.ids, texts.text.bounds, first)
        text.add(framed(words, bounds, prompts.prefix, [end_of_text]))
    speech.close()
    text.close()


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
