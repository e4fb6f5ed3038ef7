"""Training samples: the dataset interface, the stream of batches, and utterances of code arrays.

A dataset (:class:`SampleDataset`) has numbered items. One or several items make a training sample.
:class:`SampleStream` composes global batches from the samples of one epoch after another. The
samples of an epoch depend on the seed and the number of the epoch alone, never on the number of
ranks: a global batch is composed first and distributed afterwards (``packing.py``).

:class:`UtteranceDataset` has the utterances of code arrays. :class:`Concatenator` groups utterances
of one voice into one sample. Codes, text ids and samples stay on disk, memory-mapped.
``mixture.py`` has the datasets of texts, of pretraining windows, and of several datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.arrays.arrays import CodeTable, Split
from tts_assets.core.accounting import SetAside, nothing_usable
from tts_assets.sft.config import Concatenation, SftRecipe
from tts_assets.speechlm.prompts import NO_IDS, PromptFormat
from tts_assets.speechlm.tokens import DESCRIBED, TextIds, read_text_ids, text_ids
from tts_assets.speechlm.vocabulary import tokenizer_digest

Ints = NDArray[np.int64]
Group = tuple[int, ...]  # items of a dataset that make one sample
EPOCH, DROPOUT = 1, 2  # independent random streams of one seed


class DataError(ValueError):
    """The data leaves nothing to train on. The message says how to fix it."""


class TrainingSample(NamedTuple):
    """The items of one sample, and its position in the stream: epoch and number in the epoch."""

    items: Group
    epoch: int
    number: int


@dataclass(frozen=True)
class Encoded:
    """One sample of n tokens.

    ``inputs`` and ``targets`` have the shape (n - 1,); the target of position i is token i + 1.
    ``first`` is the first position whose target is in the loss. ``turns`` are the ranges of such
    positions where not all from ``first`` on are. The positions from ``text[0]`` up to ``text[1]``
    predict the text of a prompt and its ``<|text_prompt_end|>``.
    """

    inputs: Ints
    targets: Ints
    first: int
    turns: tuple[tuple[int, int], ...] = ()
    text: tuple[int, int] = (0, 0)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The ranges of positions whose targets are in the loss."""
        return self.turns or ((self.first, len(self.inputs)),)


class SampleDataset(Protocol):
    """One split of the data of a recipe, as numbered items: utterances, windows or texts.

    ``sources`` are the names of the sources of items: the speech of each corpus first, in the order
    of the recipe. ``dropped`` are items that cannot be trained on, mostly because of their length.
    """

    sources: list[str]
    dropped: list[SetAside]

    def __len__(self) -> int: ...

    def length(self, items: Group) -> int:
        """The number of tokens of the sample that these items make."""

    def source(self, item: int) -> int:
        """The number of the item's source."""

    def identity(self, item: int) -> str:
        """The name of an item in messages."""

    def encode(self, sample: TrainingSample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """The token ids of a sample. Up to ``code_dropout`` of its input codes are hidden."""

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> list[Group]:
        """The items of each sample of one epoch, in any order. ``token_rate``: codes a second."""


def too_long(identity: str, tokens: int) -> SetAside:
    """The record of an item that exceeds ``max_seq_len``.

    It is left out as a whole: truncated speech would teach the model to stop early.
    """
    return SetAside(identity, "longer than max_seq_len", f"{tokens} tokens")


def plan_epoch(
    dataset: SampleDataset, recipe: SftRecipe, token_rate: float, epoch: int
) -> list[TrainingSample]:
    """All samples of one epoch, in training order."""
    random = np.random.default_rng([recipe.seed, EPOCH, epoch])
    groups = dataset.groups(recipe, token_rate, epoch, random)
    order = random.permutation(len(groups))
    return [TrainingSample(groups[i], epoch, number) for number, i in enumerate(order)]


def drawn_epochs(members: Ints, weight: float, random: np.random.Generator) -> list[Ints]:
    """``weight`` passes over all members: whole passes, and a random part for the fraction.

    The size of the random part is rounded at random: of 3 members with the weight 0.1, one is drawn
    in 3 of 10 epochs. Rounding down would never draw any.
    """
    passes = int(weight)
    wanted = (weight - passes) * len(members)
    extra = int(wanted + random.random()) if wanted else 0
    return [members] * passes + [random.permutation(members)[:extra]]


class SampleStream:
    """Endless batches of training samples. ``(epoch, offset)`` is the whole state."""

    def __init__(
        self,
        dataset: SampleDataset,
        recipe: SftRecipe,
        token_rate: float,
        epoch: int = 0,
        offset: int = 0,
    ) -> None:
        """Raises :class:`DataError` if ``dataset`` is empty."""
        if not len(dataset):
            why = "" if dataset.dropped else ": the training split of the recipe's data is empty"
            raise DataError(nothing_usable(f"no training sample is left{why}", dataset.dropped))
        self.dataset, self.recipe, self.token_rate = dataset, recipe, token_rate
        self.epoch, self.offset = epoch, offset

    @cached_property
    def plan(self) -> list[TrainingSample]:
        """The samples of the current epoch, composed on first access."""
        return plan_epoch(self.dataset, self.recipe, self.token_rate, self.epoch)

    def batch(self) -> list[TrainingSample]:
        """The next global batch: up to ``batch_tokens`` tokens, at least one sample."""
        samples: list[TrainingSample] = []
        tokens = 0
        while True:
            if self.offset == len(self.plan):
                self.epoch, self.offset = self.epoch + 1, 0
                del self.plan
            sample = self.plan[self.offset]
            tokens += self.dataset.length(sample.items)
            if samples and tokens > self.recipe.batch_tokens:
                return samples
            samples.append(sample)
            self.offset += 1


class Concatenator:
    """Groups utterances of one voice within the limits of a recipe (see ``Concatenation``)."""

    def __init__(
        self,
        dataset: UtteranceDataset,
        config: Concatenation,
        max_seq_len: int,
        token_rate: float,
        random: np.random.Generator,
    ) -> None:
        self.dataset, self.config, self.random = dataset, config, random
        self.max_seq_len = max_seq_len
        self.max_codes = int(config.max_seconds * token_rate)
        self.short_codes = int(config.short_seconds * token_rate)

    def groups(self, utterances: Ints) -> list[Group]:
        """Partition ``utterances`` into groups. The order within each voice is kept."""
        open_groups: dict[int, list[int]] = {}
        wanted: dict[int, int] = {}
        groups: list[Group] = []
        for utterance in map(int, utterances):
            voice = int(self.dataset.voice_of[utterance])
            group = open_groups.setdefault(voice, [])
            if group and (len(group) >= wanted[voice] or not self._fits(group, utterance)):
                groups.append(tuple(group))
                group.clear()
            if not group:
                wanted[voice] = int(self.random.integers(1, self.config.max_utterances + 1))
            group.append(utterance)
        return groups + [tuple(group) for group in open_groups.values() if group]

    def short_groups(self, utterances: Ints, others: int) -> list[Group]:
        """Additional groups of short ``utterances`` of an epoch with ``others`` other groups."""
        share = self.config.short_share
        short = utterances[self.dataset.code_counts[utterances] <= self.short_codes]
        count = round(others * share / (1 - share))
        if not len(short):
            return []
        voices = self.dataset.voice_of[short]
        members = {voice: short[voices == voice] for voice in np.unique(voices)}
        return [self._short_group(members[voice]) for voice in self.random.choice(voices, count)]

    def _short_group(self, members: Ints) -> tuple[int, ...]:
        wanted = int(self.random.integers(1, self.config.max_short + 1))
        group: list[int] = []
        for utterance in map(int, self.random.choice(members, size=wanted)):
            if group and self.random.random() < self.config.repeat_share:
                utterance = int(self.random.choice(group))
            if group and not self._fits(group, utterance):
                break
            group.append(utterance)
        return tuple(group)

    def _fits(self, group: list[int], utterance: int) -> bool:
        codes = int(self.dataset.code_counts[[*group, utterance]].sum())
        whole = (*group, utterance)
        return codes <= self.max_codes and self.dataset.length(whole) <= self.max_seq_len


class UtteranceDataset:
    """The utterances of one split of several corpora that fit into ``max_seq_len`` tokens.

    ``folders`` and ``tokens`` are the folders of ``code_arrays`` and ``token_arrays`` by corpus. A
    corpus without texts of this tokenizer there is tokenized now, to the same ids. ``dropped`` are
    utterances that are too long.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        split: Split,
        prompts: PromptFormat,
        max_seq_len: int,
        tokens: Mapping[str, Path] | None = None,
    ) -> None:
        self.prompts = prompts
        self.corpora = self.sources = list(folders)
        self.tables = [CodeTable.of_split(folder, split) for folder in folders.values()]
        token_folders = [(tokens or {}).get(corpus) for corpus in self.corpora]
        self.texts = find_texts(self.tables, token_folders, split, prompts)
        lengths = [self._tokens(c) for c in range(len(self.tables))]
        fits = [np.flatnonzero(own <= max_seq_len) for own in lengths]
        self.corpus_of = np.repeat(np.arange(len(fits)), [len(rows) for rows in fits])
        self.row_of: Ints = _concatenated(fits)
        # Tokens of the sample of one utterance alone, and the tokens it adds to a group.
        self.alone: Ints = _concatenated(
            [own[rows] for own, rows in zip(lengths, fits, strict=True)]
        )
        self.code_counts: Ints = self._of_utterances([np.diff(t.bounds) for t in self.tables])
        self.added: Ints = self.code_counts + self._of_utterances(
            [texts.later.lengths for texts in self.texts]
        )
        self.dropped = [
            too_long(table.sample(int(row))["id"], int(own[row]))
            for table, own in zip(self.tables, lengths, strict=True)
            for row in np.flatnonzero(own > max_seq_len)
        ]

    def __len__(self) -> int:
        return len(self.row_of)

    def _tokens(self, corpus: int) -> Ints:
        """Tokens of the sample of each utterance of a corpus alone, shape (rows,)."""
        texts = self.texts[corpus]
        described = texts.description.lengths
        frame = np.full(len(described), len(self.prompts.head(NO_IDS)))
        if described.any():
            around = len(self.prompts.head(NO_IDS, np.zeros(1, dtype=np.int64))) - 1
            frame = np.where(described > 0, around + described, frame)
        text = texts.text.lengths
        if self.prompts.vocabulary.format.named:  # a text after a name starts with a space
            text = np.where(described > 0, texts.later.lengths, text)
        codes = np.diff(self.tables[corpus].bounds)
        return frame + text + codes + len(self.prompts.after_speech)

    def _of_utterances(self, columns: Sequence[Ints]) -> Ints:
        """From one number per row of each table to one number per utterance."""
        rows = (self.row_of[self.corpus_of == c] for c in range(len(columns)))
        return _concatenated([column[own] for column, own in zip(columns, rows, strict=True)])

    def sample(self, utterance: int) -> dict[str, Any]:
        """The fields of an utterance, parsed on each call."""
        corpus, row = self._at(utterance)
        return self.tables[corpus].sample(row)

    def source(self, utterance: int) -> int:
        """The number of the utterance's corpus."""
        return int(self.corpus_of[utterance])

    def identity(self, utterance: int) -> str:
        """The utterance's id."""
        return str(self.sample(utterance)["id"])

    def transcript(self, utterance: int) -> str:
        """The utterance's transcript."""
        return str(self.sample(utterance)["transcript"])

    @cached_property
    def voice_of(self) -> Ints:
        """The number of each utterance's voice: its corpus, speaker and description together."""
        names = ("speaker_id", *DESCRIBED)
        keys = pl.concat(
            [
                table.columns(*names).fill_null("")[self.row_of[self.corpus_of == c]]
                for c, table in enumerate(self.tables)
            ]
        ).with_columns(corpus=pl.Series(self.corpus_of))
        voices = keys.unique(maintain_order=True).with_row_index("voice")
        numbered = keys.join(voices, on=[*names, "corpus"], maintain_order="left")
        return numbered["voice"].cast(pl.Int64).to_numpy()

    def length(self, utterances: Group) -> int:
        """The number of tokens of the sample that these utterances make."""
        length = int(self.alone[utterances[0]])
        return length + sum(int(self.added[u]) for u in utterances[1:])

    def encode(self, sample: TrainingSample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """The token ids of a sample.

        A share of the input codes is replaced by the padding token. The share of each sample is
        drawn between 0 and ``code_dropout``, from ``seed`` and the sample's position in the stream.
        """
        (corpus, row), *rest = rows = [self._at(utterance) for utterance in sample.items]
        own, description = self.texts[corpus], self.texts[corpus].description[row]
        named = self.prompts.vocabulary.format.named and len(description)
        first = own.later[row] if named else own.text[row]
        texts = [first, *(self.texts[c].later[r] for c, r in rest)]
        text = np.concatenate(texts) if rest else first
        head = self.prompts.head(text, description)
        codes = [self.tables[c][r] for c, r in rows]
        ids = self.prompts.vocabulary.ids(np.concatenate(codes) if rest else codes[0])
        clean = np.concatenate([head, ids, self.prompts.after_speech])
        inputs = clean[:-1]
        if code_dropout > 0:
            random = np.random.default_rng([seed, DROPOUT, sample.epoch, sample.number])
            hidden = random.random(len(ids)) < random.random() * code_dropout
            inputs = inputs.copy()
            inputs[len(head) :][hidden] = self.prompts.tokenizer.pad_token_id
        text_end = len(head) - len(self.prompts.after_text)
        text = (text_end - sum(map(len, texts)) - 1, text_end)
        return Encoded(inputs, clean[1:], first=len(head) - 2, text=text)

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> list[Group]:
        """Single utterances, or groups of one voice where the recipe concatenates them."""
        parts: list[Ints] = []
        for corpus, name in enumerate(self.corpora):
            members = np.flatnonzero(self.corpus_of == corpus)
            parts += drawn_epochs(members, recipe.corpora[name], random)
        utterances = random.permutation(_concatenated(parts))
        if recipe.concatenate is None:
            return [(int(u),) for u in utterances]
        config = recipe.concatenate.in_epoch(epoch)
        concatenator = Concatenator(self, config, recipe.max_seq_len, token_rate, random)
        groups = concatenator.groups(utterances)
        return groups + concatenator.short_groups(np.sort(utterances), len(groups))

    def _at(self, utterance: int) -> tuple[int, int]:
        """The number of an utterance's corpus, and its row there."""
        return int(self.corpus_of[utterance]), int(self.row_of[utterance])


def find_texts(
    tables: Sequence[CodeTable], folders: Sequence[Path | None], split: Split, prompts: PromptFormat
) -> list[TextIds]:
    """The text ids of each table.

    They are read from the folder of ``token_arrays`` if it has them for this tokenizer, and
    tokenized now otherwise.
    """
    digest = tokenizer_digest(prompts.tokenizer) if any(folders) else ""
    found = []
    for table, folder in zip(tables, folders, strict=True):
        if folder is not None and (folder / digest).is_dir():
            found.append(read_text_ids(table, folder / digest, split))
        else:
            found.append(text_ids(table, prompts))
    return found


def _concatenated(parts: Sequence[Ints]) -> Ints:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])
