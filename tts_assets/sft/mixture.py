"""The dataset of a recipe, with texts, pretraining windows and mixtures of datasets.

:func:`open_dataset` opens what a recipe trains on: utterances and texts (fine-tuning), or windows
of token streams (pretraining).

:class:`TextDataset` has conversations, whose answers are trained on, and plain texts.

:class:`WindowDataset` has windows of token streams. With L = ``max_seq_len``, window k predicts the
tokens k L + 1 to (k + 1) L of a stream from the tokens before them. Every token but the first of a
stream is predicted once. The last window of a stream is shorter, so no utterance is too long or
left out.

:class:`MixtureDataset` concatenates datasets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from tts_assets.arrays.arrays import ArrayError, Bytes, CodeTable, Split, map_lines
from tts_assets.core.accounting import SetAside
from tts_assets.core.training import rank
from tts_assets.sft.config import TRANSCRIPTS, SftProgram, SftRecipe
from tts_assets.sft.dataset import UtteranceDataset, too_long
from tts_assets.sft.epochs import (
    DataError,
    Encoded,
    Group,
    Groups,
    Ints,
    Items,
    SampleDataset,
    TrainingSample,
    drawn_epochs,
    numbers,
)
from tts_assets.speechlm.formats import recognize
from tts_assets.speechlm.prompts import PromptFormat
from tts_assets.speechlm.tokens import ChatIds, Rows, read_pretraining, tokenize_texts
from tts_assets.speechlm.vocabulary import NONVERBALS, tokenizer_digest


class TextFile:
    """One split of a text source: its token ids, and the samples they were made from."""

    def __init__(self, name: str, ids: Path, samples: Path, split: Split) -> None:
        """Raises :class:`ArrayError` if the ids in ``ids`` are of other samples."""
        self.name, self.samples = name, samples / f"{split}_samples.jsonl"
        self.chats = ChatIds(ids, split)
        if len(self._lines[1]) - 1 != len(self.chats.rows):
            raise ArrayError(f"{ids} was not made from {self.samples}; delete the folder {ids}")

    @cached_property
    def _lines(self) -> tuple[Bytes, Ints]:
        return map_lines(self.samples)

    def identity(self, row: int) -> str:
        """The source's name and the sample's id."""
        text, bounds = self._lines
        sample = json.loads(text[bounds[row] : bounds[row + 1]].tobytes())
        return f"{self.name}: {sample['id']}"

    @property
    def refused(self) -> list[SetAside]:
        """Samples that the chat template cannot express."""
        found = self.chats.refused
        return [SetAside(f"{self.name}: {x.what}", x.reason, x.detail) for x in found]


class TextDataset:
    """The samples of one split of text sources that fit into ``max_seq_len`` tokens."""

    def __init__(self, files: Mapping[str, TextFile], max_seq_len: int) -> None:
        self.sources = list(files)
        self.files = list(files.values())
        lengths = [file.chats.rows.lengths for file in self.files]
        fits = [np.flatnonzero((own > 0) & (own <= max_seq_len)) for own in lengths]
        self.file_of = np.repeat(np.arange(len(fits)), [len(rows) for rows in fits])
        self.row_of: Ints = np.concatenate([np.empty(0, dtype=np.int64), *fits])
        self.dropped: list[SetAside] = []
        for file, own in zip(self.files, lengths, strict=True):
            self.dropped += file.refused
            for row in np.flatnonzero(own > max_seq_len).tolist():
                self.dropped.append(too_long(file.identity(row), int(own[row])))

    def __len__(self) -> int:
        return len(self.row_of)

    def _at(self, item: int) -> tuple[TextFile, int]:
        return self.files[self.file_of[item]], int(self.row_of[item])

    def length(self, items: Group) -> int:
        """The number of tokens of the sample."""
        file, row = self._at(items[0])
        return int(file.chats.rows.lengths[row])

    def sample_lengths(self, groups: Groups) -> Ints:
        """:meth:`length` of many samples, shape (samples,)."""
        files, rows = self.file_of[groups.items], self.row_of[groups.items]
        found = np.empty(len(groups), dtype=np.int64)
        for number, file in enumerate(self.files):
            own = files == number
            found[own] = file.chats.rows.lengths[rows[own]]
        return found

    def source(self, item: int) -> int:
        """The number of the sample's source."""
        return int(self.file_of[item])

    def item_sources(self) -> Items:
        """The number of each sample's source."""
        return self.file_of

    def identity(self, item: int) -> str:
        """The name of its source and its id."""
        file, row = self._at(item)
        return file.identity(row)

    def encode(self, sample: TrainingSample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """The token ids of a sample. It has no codes, so ``code_dropout`` changes nothing."""
        file, row = self._at(sample.items[0])
        ids = file.chats.rows[row].astype(np.int64)
        counts = file.chats.targets(row)[1:]
        edges = np.flatnonzero(np.diff(counts, prepend=0, append=0)).tolist()
        turns = tuple(zip(edges[::2], edges[1::2], strict=True))
        return Encoded(ids[:-1], ids[1:], turns[0][0], turns)

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> Groups:
        """Single samples, as often as the weight of their source says."""
        parts: list[Items] = []
        for number, name in enumerate(self.sources):
            members = numbers(*np.searchsorted(self.file_of, [number, number + 1]).tolist())
            parts += drawn_epochs(members, recipe.texts[name], random)
        return Groups(np.concatenate(parts))


@dataclass(frozen=True)
class TokenStream:
    """Rows of token ids that are read as one stream.

    ``source`` is the number of the stream's source. ``weight`` are epochs of speech; the weight of
    text is relative to other text. ``name(row)`` is the name of a row in messages.
    """

    rows: Rows
    source: int
    is_text: bool
    weight: float
    name: Callable[[int], str]

    def names(self, first: int, last: int) -> str:
        """The names of the rows from token ``first`` to token ``last``."""
        rows = np.searchsorted(self.rows.bounds, [first, last], side="right") - 1
        names = [self.name(int(row)) for row in rows]
        return names[0] if rows[0] == rows[1] else " to ".join(names)


class WindowDataset:
    """All windows of ``size`` tokens of the streams of one split. An item is one sample."""

    def __init__(
        self,
        streams: Sequence[TokenStream],
        sources: list[str],
        size: int,
        dropped: Sequence[SetAside] = (),
    ) -> None:
        self.dropped = list(dropped)
        self.streams, self.sources, self.size = list(streams), sources, size
        predicted = [max(0, len(stream.rows.ids) - 1) for stream in streams]
        counts = [-(-tokens // size) for tokens in predicted]
        self.stream_of = np.repeat(np.arange(len(streams)), counts)
        starts = [np.arange(count) * size for count in counts]
        self.starts: Ints = np.concatenate([np.empty(0, dtype=np.int64), *starts])
        ends = np.asarray(predicted, dtype=np.int64)[self.stream_of]
        self.lengths: Ints = np.minimum(ends - self.starts, size)

    def __len__(self) -> int:
        return len(self.starts)

    def length(self, items: Group) -> int:
        """The number of predicted tokens of the window."""
        (window,) = items
        return int(self.lengths[window])

    def sample_lengths(self, groups: Groups) -> Ints:
        """:meth:`length` of many samples, shape (samples,)."""
        return self.lengths[groups.items]

    def source(self, window: int) -> int:
        """The number of the source of the window's stream."""
        return self.streams[self.stream_of[window]].source

    def item_sources(self) -> Items:
        """The number of the source of each window's stream."""
        return np.array([stream.source for stream in self.streams])[self.stream_of]

    def identity(self, window: int) -> str:
        """The source, the position in the stream, and the first and last row."""
        stream = self.streams[self.stream_of[window]]
        first = int(self.starts[window])
        last = first + int(self.lengths[window])
        where = f"{self.sources[stream.source]}, tokens {first} to {last}"
        return f"{where} ({stream.names(first, last)})"

    def encode(self, sample: TrainingSample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """The token ids of a window. ``code_dropout`` is not applied."""
        (window,) = sample.items
        start = int(self.starts[window])
        end = start + int(self.lengths[window]) + 1
        ids = self.streams[self.stream_of[window]].rows.ids[start:end].astype(np.int64)
        return Encoded(ids[:-1], ids[1:], first=0)

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> Groups:
        """Windows of speech by their weights, and of text up to its share of all tokens."""
        speech = self._drawn({n: s.weight for n, s in self._kind(is_text=False)}, random)
        text = {n: s.weight for n, s in self._kind(is_text=True)}
        share = recipe.pretraining.text_share if recipe.pretraining else 0.0
        if share:
            wanted = share / (1 - share) * int(self.lengths[speech].sum())
            factor = wanted / self._tokens(text)
            text = {number: factor * weight for number, weight in text.items()}
        return Groups(np.concatenate([speech, self._drawn(text, random)]))

    def _kind(self, is_text: bool) -> list[tuple[int, TokenStream]]:
        return [(n, s) for n, s in enumerate(self.streams) if s.is_text == is_text]

    def _tokens(self, weights: dict[int, float]) -> float:
        """The weighted number of tokens of some streams. Raises :class:`DataError` if it is 0."""
        tokens = np.bincount(self.stream_of, self.lengths, minlength=len(self.streams))
        total = sum(weight * tokens[number] for number, weight in weights.items())
        if not total:
            raise DataError(
                "there is no text to mix in: add texts to the recipe, or set "
                "pretraining.text_share = 0"
            )
        return float(total)

    def _drawn(self, weights: dict[int, float], random: np.random.Generator) -> Items:
        parts = [numbers(0, 0)]
        for number, weight in weights.items():
            members = numbers(*np.searchsorted(self.stream_of, [number, number + 1]).tolist())
            parts += drawn_epochs(members, weight, random)
        return np.concatenate(parts)


class MixtureDataset:
    """Several datasets as one. Items are numbered consecutively; a sample has items of one."""

    def __init__(self, parts: Sequence[SampleDataset]) -> None:
        self.parts = parts
        self.sources = [source for part in parts for source in part.sources]
        self.dropped = [item for part in parts for item in part.dropped]
        self.firsts = np.cumsum([0, *(len(part) for part in parts)])
        self.first_sources = np.cumsum([0, *(len(part.sources) for part in parts)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def _at(self, items: Group) -> tuple[int, SampleDataset, Group]:
        """The number of the part of these items, the part, and their numbers in the part."""
        number = int(np.searchsorted(self.firsts, items[0], side="right")) - 1
        first = int(self.firsts[number])
        return number, self.parts[number], tuple(item - first for item in items)

    def length(self, items: Group) -> int:
        """The number of tokens of the sample."""
        _, part, own = self._at(items)
        return part.length(own)

    def sample_lengths(self, groups: Groups) -> Ints:
        """:meth:`length` of many samples, shape (samples,)."""
        part_of = np.searchsorted(self.firsts, groups.firsts, side="right") - 1
        found = np.empty(len(groups), dtype=np.int64)
        for number, part in enumerate(self.parts):
            own = np.flatnonzero(part_of == number)
            found[own] = part.sample_lengths(groups.take(own).shifted(-int(self.firsts[number])))
        return found

    def source(self, item: int) -> int:
        """The number of the item's source among the sources of all parts."""
        number, part, own = self._at((item,))
        return int(self.first_sources[number]) + part.source(own[0])

    def item_sources(self) -> Items:
        """The number of each item's source among the sources of all parts."""
        firsts = self.first_sources[:-1]
        return np.concatenate(
            [part.item_sources() + n for part, n in zip(self.parts, firsts, strict=True)]
        )

    def identity(self, item: int) -> str:
        """The name of the item in its part."""
        _, part, own = self._at((item,))
        return part.identity(own[0])

    def encode(self, sample: TrainingSample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """The token ids of a sample, from its part."""
        _, part, own = self._at(sample.items)
        return part.encode(sample._replace(items=own), code_dropout, seed)

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> Groups:
        """The samples of an epoch of all parts."""
        found = [part.groups(recipe, token_rate, epoch, random) for part in self.parts]
        firsts = self.firsts[:-1].tolist()
        return Groups.join([own.shifted(n) for own, n in zip(found, firsts, strict=True)])


TEXT_FOLDER = "texts"  # in the run folder: the token ids of texts


def open_dataset(program: SftProgram, prompts: PromptFormat, split: Split) -> SampleDataset:
    """One split of the data of the program's recipe.

    Texts are tokenized into the run folder by the first rank; a restart reads them there. Raises
    :class:`ArrayError` if ``token_arrays`` are missing or of other samples.
    """
    recipe = program.recipe
    cache = program.run_dir / TEXT_FOLDER
    texts = {
        name: open_texts(name, program.texts[name], prompts, cache, split) for name in recipe.texts
    }
    if recipe.pretraining is not None:
        streams = corpus_streams(program, prompts, split) + text_streams(program, texts)
        refused = [item for file in texts.values() for item in file.refused]
        return WindowDataset(streams, recipe.sources, recipe.max_seq_len, refused)
    folders = {name: program.arrays[name] for name in recipe.corpora}
    speech = UtteranceDataset(folders, split, prompts, recipe.max_seq_len, program.tokens)
    return MixtureDataset([speech, TextDataset(texts, recipe.max_seq_len)]) if texts else speech


def utterances_of(dataset: SampleDataset) -> UtteranceDataset | None:
    """The part of a dataset that has utterances with their texts; None if there is none."""
    parts = dataset.parts if isinstance(dataset, MixtureDataset) else [dataset]
    return next((part for part in parts if isinstance(part, UtteranceDataset)), None)


def open_texts(
    name: str, folder: Path, prompts: PromptFormat, cache: Path, split: Split
) -> TextFile:
    """One split of the texts in ``folder``, tokenized below ``cache`` if necessary."""
    return TextFile(name, tokenize_texts(folder, prompts, cache), folder, split)


def corpus_streams(program: SftProgram, prompts: PromptFormat, split: Split) -> list[TokenStream]:
    """The speech stream of each corpus and, with mixed-in text, the stream of its transcripts.

    Raises :class:`ArrayError` if the token arrays are of another tokenizer.
    """
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
    """One stream for each text source."""
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


def log_spelled_tags(
    log: Callable[[str], None], folders: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Log, for each corpus, how many training transcripts have tags that are no single tokens.

    A tag such as ``<laugh>`` that ``tokenizer`` does not have is trained on letter by letter.
    """
    if rank() or NONVERBALS[0] in tokenizer.get_vocab():
        return
    form = recognize(tokenizer.get_vocab())
    tags = sorted(set(NONVERBALS) - (form.spelled if form else frozenset()))
    for corpus, folder in folders.items():
        count = count_tagged(folder / "train_samples.jsonl", tags)
        if count:
            log(
                f"{count} transcripts of {corpus} have tags such as {tags[0]}, which are "
                "spelled out letter by letter: the tokenizer has no such tokens. Write "
                "vocabulary.nonverbals = true in the recipe where its base gets its vocabulary"
            )


def count_tagged(samples: Path, tags: list[str]) -> int:
    """The number of samples of a JSONL file whose transcript has a tag. The file is streamed."""
    if not samples.stat().st_size:
        return 0
    texts = pl.scan_ndjson(samples, schema={"transcript": pl.String})
    with_tags = texts.filter(pl.col("transcript").str.contains_any(tags))
    return int(with_tags.select(pl.len()).collect(engine="streaming").item())
