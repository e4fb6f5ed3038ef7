"""What a program's recipe trains on, opened: utterances and texts to fine-tune on, or windows of
both to pretrain on."""

from __future__ import annotations

from pathlib import Path

from tts_assets.arrays.arrays import ArrayError, CodeTable, Split
from tts_assets.sft.config import TRANSCRIPTS, SftProgram
from tts_assets.sft.dataset import Pool
from tts_assets.sft.mixture import Mixture
from tts_assets.sft.stream import SamplePool
from tts_assets.sft.texts import TextFile, TextPool
from tts_assets.sft.windows import TokenStream, Windows
from tts_assets.speechlm.chats import tokenize_texts
from tts_assets.speechlm.pretraining import read_pretraining
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokenizer import tokenizer_digest

TEXT_FOLDER = "texts"  # of a run: the texts as token ids


def open_pool(program: SftProgram, prompts: PromptFormat, split: Split) -> SamplePool:
    """One split of all that the recipe trains on. Texts are tokenized into the run folder by the
    first who asks; a restart finds them there."""
    recipe = program.recipe
    cache = program.run_dir / TEXT_FOLDER
    texts = {
        name: open_texts(name, program.texts[name], prompts, cache, split) for name in recipe.texts
    }
    if recipe.pretraining is not None:
        streams = corpus_streams(program, prompts, split) + text_streams(program, texts)
        refused = [item for file in texts.values() for item in file.refused]
        return Windows(streams, recipe.sources, recipe.max_seq_len, refused)
    folders = {name: program.arrays[name] for name in recipe.corpora}
    speech = Pool(folders, split, prompts, recipe.max_seq_len, program.tokens)
    return Mixture([speech, TextPool(texts, recipe.max_seq_len)]) if texts else speech


def speech_of(pool: SamplePool) -> Pool | None:
    """The utterances of a pool, each with its text; None where there are none."""
    parts = pool.parts if isinstance(pool, Mixture) else [pool]
    return next((part for part in parts if isinstance(part, Pool)), None)


def open_texts(
    name: str, folder: Path, prompts: PromptFormat, cache: Path, split: Split
) -> TextFile:
    return TextFile(name, tokenize_texts(folder, prompts, cache), folder, split)


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


def text_streams(program: SftProgram, texts: dict[str, TextFile]) -> list[TokenStream]:
    """Each text source end to end."""
    recipe = program.recipe
    return [
        TokenStream(
            rows=file.chats.rows,
            source=recipe.sources.index(name),
            is_text=True,
            weight=recipe.texts[name],
            name=file.identity,
        )
        for name, file in texts.items()
    ]
