"""Makes ``token_arrays``: ``python -m tts_assets.speechlm.tokens run.json``.

A folder for each tokenizer, named by its digest, with the texts as token ids (``text_ids.py``) and,
where asked for, the streams that pretraining reads (``pretraining.py``).
"""

from __future__ import annotations

import json
from pathlib import Path

from tts_assets.arrays.arrays import SPLITS, CodeTable
from tts_assets.artifacts import CodeArrays, TokenFacts
from tts_assets.program import Run, load_config
from tts_assets.speechlm.config import TokenProgram
from tts_assets.speechlm.pretraining import write_pretraining
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.text_ids import write_text_ids
from tts_assets.speechlm.tokenizer import open_tokenizer, tokenizer_digest

LIST_FILE = "tokenizers.json"


def write_tokens(arrays: CodeArrays, prompts: PromptFormat, folder: Path, pretraining: bool) -> int:
    """The files of one tokenizer; returns the number of text tokens."""
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
    program = load_config(TokenProgram, argv)
    with Run(program.run_dir) as run:
        arrays = CodeArrays.open(program.arrays)
        counts: dict[str, int] = {}
        for tokenizer in run.progress(program.tokenizers, "tokenizers"):
            prompts = open_tokenizer(tokenizer, arrays.facts.codebook_size)
            digest = tokenizer_digest(prompts.tokenizer)
            folder = run.result_dir / digest
            counts[digest] = write_tokens(arrays, prompts, folder, program.pretraining)
        (run.result_dir / LIST_FILE).write_text(json.dumps(sorted(counts)) + "\n")
        facts = TokenFacts(corpus=arrays.facts.corpus, text_tokens=counts)
        run.finish(facts.model_dump())


if __name__ == "__main__":
    main()
