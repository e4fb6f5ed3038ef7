"""What a program's recipe trains on, opened: utterances to fine-tune, windows to pretrain."""

from __future__ import annotations

from tts_assets.arrays.arrays import ArrayError, CodeTable, Split
from tts_assets.sft.config import TRANSCRIPTS, SftProgram
from tts_assets.sft.dataset import Pool
from tts_assets.sft.stream import SamplePool
from tts_assets.sft.windows import TokenStream, Windows
from tts_assets.speechlm.pretraining import read_pretraining
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokenizer import tokenizer_digest


def open_pool(program: SftProgram, prompts: PromptFormat, split: Split) -> SamplePool:
    """One split of all that the recipe trains on."""
    recipe = program.recipe
    if recipe.pretraining is not None:
        streams = corpus_streams(program, prompts, split)
        return Windows(streams, recipe.sources, recipe.max_seq_len)
    folders = {name: program.arrays[name] for name in recipe.corpora}
    return Pool(folders, split, prompts, recipe.max_seq_len, program.tokens)


def corpus_streams(program: SftProgram, prompts: PromptFormat, split: Split) -> list[TokenStream]:
    """The speech of each corpus and, where text is mixed in, its transcripts."""
    recipe = program.recipe
    digest = tokenizer_digest(prompts.tokenizer)
    streams = []
    for number, (corpus, weight) in enumerate(recipe.corpora.items()):
        folder = program.tokens[corpus] / digest
        if not folder.is_dir():
            raise ArrayError(
                f"token_arrays[{corpus}] have nothing of this recipe's tokenizer; materialize "
                f"token_arrays[{corpus}] again"
            )
        table = CodeTable.of_split(program.arrays[corpus], split)
        speech, text = read_pretraining(table, folder, prompts, split)

        def name(row: int, table: CodeTable = table) -> str:
            return str(table.sample(row)["id"])

        streams.append(TokenStream(speech, number, is_text=False, weight=weight, name=name))
        if TRANSCRIPTS in recipe.sources:
            source = recipe.sources.index(TRANSCRIPTS)
            streams.append(TokenStream(text, source, is_text=True, weight=weight, name=name))
    return streams
