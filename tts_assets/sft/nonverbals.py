"""Tags such as ``<laugh>`` in transcripts: tokens of their own, or spelled out as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl
from transformers import PreTrainedTokenizerBase

from tts_assets.program import Run
from tts_assets.speechlm.vocabulary import NONVERBALS


def tell_of_spelled_tags(
    run: Run, folders: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Say, corpus by corpus, how many training transcripts have tags that are no tokens of
    ``tokenizer``: the model would learn their letters."""
    if not run.is_main or NONVERBALS[0] in tokenizer.get_vocab():
        return
    for corpus, folder in folders.items():
        count = tagged(folder / "train_samples.jsonl")
        if count:
            run.note(
                f"{count} transcripts of {corpus} have tags such as {NONVERBALS[0]}, which are "
                "spelled out letter by letter: the tokenizer has no such tokens. Write "
                "vocabulary.nonverbals = true in the recipe where its base gets its vocabulary"
            )


def tagged(samples: Path) -> int:
    """Samples of a JSONL file whose transcript has a tag; the file is streamed."""
    if not samples.stat().st_size:
        return 0
    texts = pl.scan_ndjson(samples, schema={"transcript": pl.String})
    with_tags = texts.filter(pl.col("transcript").str.contains_any(list(NONVERBALS)))
    return int(with_tags.select(pl.len()).collect(engine="streaming").item())
