"""Utterances of code arrays as training samples.

:class:`UtteranceDataset` has the utterances of code arrays. :class:`Concatenator` groups utterances
of one voice into one sample. Codes, text ids and samples stay on disk, memory-mapped.
``epochs.py`` has the interface of datasets, ``mixture.py`` the datasets of texts, of pretraining
windows, and of several datasets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.arrays.arrays import CodeTable, Split
from tts_assets.core.accounting import SetAside
from tts_assets.sft.config import Concatenation, SftRecipe
from tts_assets.sft.epochs import (
    DROPOUT,
    Encoded,
    Group,
    Groups,
    Ints,
    Items,
    TrainingSample,
    drawn_epochs,
    numbers,
)
from tts_assets.speechlm.prompts import NO_IDS, PromptFormat
from tts_assets.speechlm.tokens import DESCRIBED, TextIds, read_text_ids, text_ids
from tts_assets.speechlm.vocabulary import tokenizer_digest

COMPILED = 200_000  # utterances from which on compiling their loop, 5 s, takes less than running it


def too_long(identity: str, tokens: int) -> SetAside:
    """The record of an item that exceeds ``max_seq_len``.

    It is left out as a whole: truncated speech would teach the model to stop early.
    """
    return SetAside(identity, "longer than max_seq_len", f"{tokens} tokens")


def assign_groups(
    voices: Items, codes: Items, alone: Items, added: Items, wanted: Ints, limits: tuple[int, int]
) -> tuple[Ints, Ints]:
    """The group of each of n utterances, and the groups in the order of the result.

    All arrays are (n,): the ``voices``, ``codes``, tokens ``alone`` and tokens ``added`` to a group
    of the utterances, and the ``wanted`` size of group i. ``limits`` are the codes and tokens of a
    group. Each utterance joins the open group of its voice or, if that is full, opens another.
    Groups that are full come first, then the last group of each voice. numba can compile it.
    """
    count = full = found = 0
    group_of, order = np.empty(len(voices), np.int64), np.empty(len(voices), np.int64)
    seen = np.empty(len(voices), np.int64)  # voices in the order of their first utterance
    group = np.full(voices.max() + 1, -1, np.int64)  # the open group of each voice
    room, size, length = np.zeros_like(group), np.zeros_like(group), np.zeros_like(group)
    for i in range(len(voices)):
        voice = voices[i]
        fits = size[voice] + codes[i] <= limits[0] and length[voice] + added[i] <= limits[1]
        if room[voice] > 0 and fits:
            room[voice] -= 1
            size[voice] += codes[i]
            length[voice] += added[i]
        else:
            if group[voice] < 0:
                seen[found] = voice
                found += 1
            else:
                order[full] = group[voice]
                full += 1
            group[voice] = count
            room[voice], size[voice], length[voice] = wanted[count] - 1, codes[i], alone[i]
            count += 1
        group_of[i] = group[voice]
    order[full:count] = group[seen[:found]]
    return group_of, order[:count]


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

    def groups(self, utterances: Items) -> Groups:
        """Partition ``utterances`` into groups. The order within each voice is kept."""
        data, most, state = self.dataset, self.config.max_utterances, self.random.bit_generator
        before = state.state
        wanted = self.random.integers(1, most + 1, size=len(utterances))
        assign = assign_groups
        if len(utterances) >= COMPILED:
            import numba  # takes a second

            assign = numba.njit(assign_groups)
        limits = self.max_codes, self.max_seq_len
        group_of, order = assign(
            data.voice_of[utterances],
            data.code_counts[utterances],
            data.alone[utterances],
            data.added[utterances],
            wanted,
            limits,
        )
        # Later draws follow those of the groups that there are.
        state.state = before
        self.random.integers(1, most + 1, size=len(order))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        sizes = np.bincount(group_of, minlength=len(order))[order]
        items = utterances[np.argsort(place[group_of], kind="stable")]
        return Groups(items, np.append(0, np.cumsum(sizes)))

    def short_groups(self, utterances: Items, others: int) -> Groups:
        """Additional groups of short ``utterances`` of an epoch with ``others`` other groups."""
        share = self.config.short_share
        short = utterances[self.dataset.code_counts[utterances] <= self.short_codes]
        count = round(others * share / (1 - share))
        if not len(short):
            return Groups(short)
        voices = self.dataset.voice_of[short]
        by_voice = np.argsort(voices, kind="stable")
        names, starts = np.unique(voices[by_voice], return_index=True)
        members = dict(zip(names.tolist(), np.split(short[by_voice], starts[1:]), strict=True))
        drawn = self.random.choice(voices, count).tolist()
        return Groups.of([self._short_group(members[voice]) for voice in drawn])

    def _short_group(self, members: Items) -> Group:
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
        # The utterances of corpus c are firsts[c] to firsts[c + 1] - 1.
        self.firsts: list[int] = np.cumsum([0, *map(len, fits)]).tolist()
        self.row_of = np.concatenate(fits).astype(np.int32)
        # Tokens of the sample of one utterance alone, and the tokens it adds to a group.
        self.alone = self._of_utterances(lengths)
        self.code_counts = self._of_utterances([np.diff(t.bounds) for t in self.tables])
        later = self._of_utterances([texts.later.lengths for texts in self.texts])
        self.added = self.code_counts + later
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

    def _rows(self, corpus: int) -> NDArray[np.int32]:
        """The row of each utterance of a corpus."""
        return self.row_of[self.firsts[corpus] : self.firsts[corpus + 1]]

    def _of_utterances(self, columns: Sequence[Ints]) -> NDArray[np.int32]:
        """From one number per row of each table to one number per utterance."""
        rows = [column[self._rows(c)].astype(np.int32) for c, column in enumerate(columns)]
        return np.concatenate(rows)

    def sample(self, utterance: int) -> dict[str, Any]:
        """The fields of an utterance, parsed on each call."""
        corpus, row = self._at(utterance)
        return self.tables[corpus].sample(row)

    def source(self, utterance: int) -> int:
        """The number of the utterance's corpus."""
        return bisect_right(self.firsts, utterance) - 1

    def item_sources(self) -> Items:
        """The number of each utterance's corpus."""
        return np.repeat(np.arange(len(self.corpora)), np.diff(self.firsts))

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
                table.columns(*names).fill_null("")[self._rows(c)]
                for c, table in enumerate(self.tables)
            ]
        ).with_columns(corpus=pl.Series(self.item_sources()))
        voices = keys.unique(maintain_order=True).with_row_index("voice")
        numbered = keys.join(voices, on=[*names, "corpus"], maintain_order="left")
        return numbered["voice"].cast(pl.Int64).to_numpy()

    def length(self, utterances: Group) -> int:
        """The number of tokens of the sample that these utterances make."""
        length = int(self.alone[utterances[0]])
        return length + sum(int(self.added[u]) for u in utterances[1:])

    def sample_lengths(self, groups: Groups) -> Ints:
        """:meth:`length` of many samples, shape (samples,)."""
        first = groups.firsts
        head = (self.alone[first] - self.added[first]).astype(np.int64)
        return groups.sums(self.added) + head

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
    ) -> Groups:
        """Single utterances, or groups of one voice where the recipe concatenates them."""
        parts: list[Items] = []
        for corpus, name in enumerate(self.corpora):
            members = numbers(self.firsts[corpus], self.firsts[corpus + 1])
            parts += drawn_epochs(members, recipe.corpora[name], random)
        utterances = np.concatenate(parts)
        random.shuffle(utterances)
        if recipe.concatenate is None:
            return Groups(utterances)
        config = recipe.concatenate.in_epoch(epoch)
        concatenator = Concatenator(self, config, recipe.max_seq_len, token_rate, random)
        groups = concatenator.groups(utterances)
        return Groups.join([groups, concatenator.short_groups(np.sort(utterances), len(groups))])

    def _at(self, utterance: int) -> tuple[int, int]:
        """The number of an utterance's corpus, and its row there."""
        return self.source(utterance), int(self.row_of[utterance])


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
