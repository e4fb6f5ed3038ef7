"""Utterances of code arrays, and the endless stream of training samples made from them.

Texts are tokenized once; their ids, the codes and the samples stay on disk, memory-mapped. What an
epoch holds depends on the seed and its number alone, never on ranks: a global batch is composed
first, then split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tts_assets.arrays.arrays import CodeTable, Split
from tts_assets.sft.config import Concatenation, SftRecipe
from tts_assets.speechlm.prompts import NO_IDS, PromptFormat
from tts_assets.speechlm.text_ids import DESCRIBED, TextIds, read_text_ids, text_ids
from tts_assets.speechlm.tokenizer import tokenizer_digest

Ints = NDArray[np.int64]
EPOCH, DROPOUT = 1, 2  # streams of random numbers below one seed


class DataError(ValueError):
    """Code arrays that leave nothing to train on."""


class Sample(NamedTuple):
    """Utterances (indices into a pool) that make one sample, and its place in the stream."""

    utterances: tuple[int, ...]
    epoch: int
    number: int


@dataclass(frozen=True)
class Encoded:
    """One sample as token ids, n = prompt + codes + 1 tokens.

    ``inputs`` and ``targets`` (n - 1,): the target of position i is token i + 1. ``first`` is the
    first position whose target counts: it predicts ``<|speech_start|>``. The positions
    from ``text[0]`` up to ``text[1]`` predict the text and its ``<|text_prompt_end|>``.
    """

    inputs: Ints
    targets: Ints
    first: int
    text: tuple[int, int] = (0, 0)


class Pool:
    """All utterances of one split of several corpora that fit into ``max_seq_len``.

    ``tokens`` holds, by corpus, the folder of its ``token_arrays``; a corpus without texts of this
    tokenizer there is tokenized now, to the same ids. ``dropped`` holds an (id, tokens) pair for
    every utterance that does not fit: it is left out whole, since speech cut short would teach the
    model to stop early.
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
        self.corpora = list(folders)
        self.tables = [CodeTable.of_split(folder, split) for folder in folders.values()]
        places = [(tokens or {}).get(corpus) for corpus in self.corpora]
        self.texts = find_texts(self.tables, places, split, prompts)
        lengths = [self._tokens(c) for c in range(len(self.tables))]
        fits = [np.flatnonzero(own <= max_seq_len) for own in lengths]
        self.corpus_of = np.repeat(np.arange(len(fits)), [len(rows) for rows in fits])
        self.row_of: Ints = _joined(fits)
        # Tokens of the sample that each utterance makes by itself, and what it adds to another.
        self.alone: Ints = _joined([own[rows] for own, rows in zip(lengths, fits, strict=True)])
        self.code_counts: Ints = self._of_utterances([np.diff(t.bounds) for t in self.tables])
        self.added: Ints = self.code_counts + self._of_utterances(
            [texts.later.lengths for texts in self.texts]
        )
        self.dropped: list[tuple[str, int]] = [
            (table.sample(int(row))["id"], int(own[row]))
            for table, own in zip(self.tables, lengths, strict=True)
            for row in np.flatnonzero(own > max_seq_len)
        ]

    def __len__(self) -> int:
        return len(self.row_of)

    def _tokens(self, corpus: int) -> Ints:
        """Tokens of the sample that each utterance of a corpus makes by itself, (rows,)."""
        texts = self.texts[corpus]
        described = texts.description.lengths
        plain = len(self.prompts.head(NO_IDS))
        frame = len(self.prompts.head(NO_IDS, np.zeros(1, dtype=np.int64))) - 1
        head = np.where(described > 0, frame + described, plain)
        return head + texts.text.lengths + np.diff(self.tables[corpus].bounds) + 1

    def _of_utterances(self, columns: Sequence[Ints]) -> Ints:
        """A number a row of each table -> a number an utterance."""
        rows = (self.row_of[self.corpus_of == c] for c in range(len(columns)))
        return _joined([column[own] for column, own in zip(columns, rows, strict=True)])

    def sample(self, utterance: int) -> dict[str, Any]:
        """The sample of an utterance, parsed now."""
        corpus, row = self._at(utterance)
        return self.tables[corpus].sample(row)

    def identity(self, utterance: int) -> str:
        return str(self.sample(utterance)["id"])

    def transcript(self, utterance: int) -> str:
        return str(self.sample(utterance)["transcript"])

    @cached_property
    def voice_of(self) -> Ints:
        """A number a voice: utterances are joined only within one corpus, speaker, description."""
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

    def length(self, utterances: tuple[int, ...]) -> int:
        """Tokens of the sample that these utterances make."""
        first, *rest = utterances
        return int(self.alone[first]) + sum(int(self.added[u]) for u in rest)

    def encode(self, sample: Sample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """Token ids of a sample. Up to ``code_dropout`` of its input codes become padding tokens:
        of each sample a share between 0 and that, drawn from ``seed`` and the sample's place."""
        (corpus, row), *rest = map(self._at, sample.utterances)
        texts = [self.texts[corpus].text[row], *(self.texts[c].later[r] for c, r in rest)]
        head = self.prompts.head(np.concatenate(texts), self.texts[corpus].description[row])
        codes = np.concatenate([self.tables[c][r] for c, r in map(self._at, sample.utterances)])
        vocabulary = self.prompts.vocabulary
        clean = np.concatenate([head, vocabulary.ids(codes), [vocabulary.speech_end]])
        inputs = clean[:-1]
        if code_dropout > 0:
            random = np.random.default_rng([seed, DROPOUT, sample.epoch, sample.number])
            hidden = random.random(len(codes)) < random.random() * code_dropout
            inputs = inputs.copy()
            inputs[len(head) :][hidden] = self.prompts.tokenizer.pad_token_id
        text_end = len(head) - len(self.prompts.after_text)
        text = (text_end - sum(map(len, texts)) - 1, text_end)
        return Encoded(inputs, clean[1:], len(head) - 2, text)

    def _at(self, utterance: int) -> tuple[int, int]:
        """Its corpus and its row there."""
        return int(self.corpus_of[utterance]), int(self.row_of[utterance])


def find_texts(
    tables: Sequence[CodeTable], places: Sequence[Path | None], split: Split, prompts: PromptFormat
) -> list[TextIds]:
    """The texts of each table: read where ``token_arrays`` has them of this tokenizer, or else
    tokenized now."""
    digest = tokenizer_digest(prompts.tokenizer) if any(places) else ""
    found = []
    for table, place in zip(tables, places, strict=True):
        if place is not None and (place / digest).is_dir():
            found.append(read_text_ids(table, place / digest, split))
        else:
            found.append(text_ids(table, prompts))
    return found


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def plan_epoch(pool: Pool, recipe: SftRecipe, token_rate: float, epoch: int) -> list[Sample]:
    """All samples of one epoch, in training order."""
    random = np.random.default_rng([recipe.seed, EPOCH, epoch])
    weights = [recipe.corpora[name] for name in pool.corpora]
    utterances = random.permutation(_drawn(pool, weights, random))
    if recipe.concatenate is None:
        groups: list[tuple[int, ...]] = [(int(u),) for u in utterances]
    else:
        config = recipe.concatenate.in_epoch(epoch)
        joiner = _Joiner(pool, config, recipe.max_seq_len, token_rate, random)
        groups = joiner.join(utterances)
        groups += joiner.short_groups(np.sort(utterances), len(groups))
    order = random.permutation(len(groups))
    return [Sample(groups[i], epoch, number) for number, i in enumerate(order)]


def _drawn(pool: Pool, weights: list[float], random: np.random.Generator) -> Ints:
    """Utterances of one epoch: whole passes, and a random part for the fraction of a weight.

    Of 3 utterances with a weight of 0.1 one is drawn in 3 of 10 epochs: rounded, it were none.
    """
    parts = [np.empty(0, dtype=np.int64)]
    for corpus, weight in enumerate(weights):
        members = np.flatnonzero(pool.corpus_of == corpus)
        parts += [members] * int(weight)
        wanted = (weight - int(weight)) * len(members)
        extra = int(wanted + random.random()) if wanted else 0
        parts.append(random.permutation(members)[:extra])
    return np.concatenate(parts)


class _Joiner:
    """Makes groups of utterances of one voice within the limits of a recipe."""

    def __init__(
        self,
        pool: Pool,
        config: Concatenation,
        max_seq_len: int,
        token_rate: float,
        random: np.random.Generator,
    ) -> None:
        self.pool, self.config, self.random = pool, config, random
        self.max_seq_len = max_seq_len
        self.max_codes = int(config.max_seconds * token_rate)
        self.short_codes = int(config.short_seconds * token_rate)

    def join(self, utterances: Ints) -> list[tuple[int, ...]]:
        """Partition ``utterances`` into groups, in their order within each voice."""
        open_groups: dict[int, list[int]] = {}
        wanted: dict[int, int] = {}
        groups: list[tuple[int, ...]] = []
        for utterance in map(int, utterances):
            voice = int(self.pool.voice_of[utterance])
            group = open_groups.setdefault(voice, [])
            if group and (len(group) >= wanted[voice] or not self._fits(group, utterance)):
                groups.append(tuple(group))
                group.clear()
            if not group:
                wanted[voice] = int(self.random.integers(1, self.config.max_utterances + 1))
            group.append(utterance)
        return groups + [tuple(group) for group in open_groups.values() if group]

    def short_groups(self, utterances: Ints, others: int) -> list[tuple[int, ...]]:
        """Additional groups of the short ones of an epoch's ``utterances``, for ``others`` groups
        of all kinds."""
        share = self.config.short_share
        short = utterances[self.pool.code_counts[utterances] <= self.short_codes]
        count = round(others * share / (1 - share))
        if not len(short):
            return []
        voices = self.pool.voice_of[short]
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
        codes = int(self.pool.code_counts[[*group, utterance]].sum())
        whole = (*group, utterance)
        return codes <= self.max_codes and self.pool.length(whole) <= self.max_seq_len


class SampleStream:
    """Endless training samples; ``(epoch, offset)`` is its whole state."""

    def __init__(
        self, pool: Pool, recipe: SftRecipe, token_rate: float, epoch: int = 0, offset: int = 0
    ) -> None:
        if not len(pool):
            raise DataError("no training utterance is left; see set_aside.jsonl for the reasons")
        self.pool, self.recipe, self.token_rate = pool, recipe, token_rate
        self.epoch, self.offset = epoch, offset
        self.plan = plan_epoch(pool, recipe, token_rate, epoch)

    def batch(self) -> list[Sample]:
        """The next samples, up to ``batch_tokens`` tokens (one sample at least)."""
        samples: list[Sample] = []
        tokens = 0
        while True:
            if self.offset == len(self.plan):
                self.epoch, self.offset = self.epoch + 1, 0
                self.plan = plan_epoch(self.pool, self.recipe, self.token_rate, self.epoch)
            sample = self.plan[self.offset]
            tokens += self.pool.length(sample.utterances)
            if samples and tokens > self.recipe.batch_tokens:
                return samples
            samples.append(sample)
            self.offset += 1
