"""Utterances of code arrays, and the endless stream of training samples made from them.

Texts are tokenized once, codes stay memory-mapped uint16. What an epoch holds depends on the
seed and its number alone, never on ranks: a global batch is composed first, then split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tts_assets.arrays.arrays import CodeTable, Split
from tts_assets.sft.config import Concatenation, SftRecipe
from tts_assets.speechlm.prompts import PromptFormat

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
    first position whose target counts: it predicts ``<|speech_start|>``.
    """

    inputs: Ints
    targets: Ints
    first: int


class Pool:
    """All utterances of one split of several corpora that fit into ``max_seq_len``.

    ``dropped`` holds an (id, tokens) pair for every utterance that does not fit: it is left out
    whole, since speech cut short would teach the model to stop early.
    """

    def __init__(
        self, folders: dict[str, Path], split: Split, prompts: PromptFormat, max_seq_len: int
    ) -> None:
        self.prompts = prompts
        self.corpora = list(folders)
        self.tables = [CodeTable.of_split(folder, split) for folder in folders.values()]
        every = [(c, row) for c, table in enumerate(self.tables) for row in range(len(table))]
        texts = [str(self.tables[c].samples[row]["transcript"]) for c, row in every]
        first = prompts.text_batch(texts)
        # As a continuation: tokenizers join the space to the next word.
        later = prompts.text_batch([" " + text for text in texts])
        self.dropped: list[tuple[str, int]] = []
        self.place: list[tuple[int, int]] = []
        self.alone: list[int] = []  # tokens of the sample that the utterance makes by itself
        self.text: list[Ints] = []
        self.continuation: list[Ints] = []
        for (corpus, row), ids, continued in zip(every, first, later, strict=True):
            tokens = self._tokens(corpus, row, len(ids))
            if tokens > max_seq_len:
                self.dropped.append((self._sample(corpus, row)["id"], tokens))
                continue
            self.place.append((corpus, row))
            self.alone.append(tokens)
            self.text.append(ids)
            self.continuation.append(continued)

    def __len__(self) -> int:
        return len(self.place)

    def _sample(self, corpus: int, row: int) -> dict[str, Any]:
        return self.tables[corpus].samples[row]

    def _tokens(self, corpus: int, row: int, text: int) -> int:
        description = self._sample(corpus, row).get("voice_description") or ""
        head = len(self.prompts.head(np.empty(0, dtype=np.int64), description))
        return head + text + len(self.tables[corpus][row]) + 1

    def identity(self, utterance: int) -> str:
        return str(self._sample(*self.place[utterance])["id"])

    def transcript(self, utterance: int) -> str:
        return str(self._sample(*self.place[utterance])["transcript"])

    @cached_property
    def code_counts(self) -> Ints:
        """Codes of each utterance."""
        return np.array([len(self.tables[c][row]) for c, row in self.place], dtype=np.int64)

    @cached_property
    def corpus_of(self) -> Ints:
        return np.array([corpus for corpus, _ in self.place], dtype=np.int64)

    @cached_property
    def voice_of(self) -> Ints:
        """A number a voice: utterances are joined only within one corpus, speaker, description."""
        keys = [
            (c, s.get("speaker_id", ""), s.get("voice_description") or "")
            for c, s in ((c, self._sample(c, row)) for c, row in self.place)
        ]
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys], dtype=np.int64)

    def length(self, utterances: tuple[int, ...]) -> int:
        """Tokens of the sample that these utterances make."""
        first, *rest = utterances
        added = sum(len(self.continuation[u]) + int(self.code_counts[u]) for u in rest)
        return self.alone[first] + added

    def encode(self, sample: Sample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """Token ids of a sample. Up to ``code_dropout`` of its input codes become padding tokens:
        of each sample a share between 0 and that, drawn from ``seed`` and the sample's place."""
        first, *rest = sample.utterances
        text = np.concatenate([self.text[first], *(self.continuation[u] for u in rest)])
        description = self._sample(*self.place[first]).get("voice_description") or ""
        head = self.prompts.head(text, description)
        codes = np.concatenate([self.tables[c][row] for c, row in map(self._at, sample.utterances)])
        vocabulary = self.prompts.vocabulary
        clean = np.concatenate([head, vocabulary.ids(codes), [vocabulary.speech_end]])
        inputs = clean[:-1]
        if code_dropout > 0:
            random = np.random.default_rng([seed, DROPOUT, sample.epoch, sample.number])
            hidden = random.random(len(codes)) < random.random() * code_dropout
            inputs = inputs.copy()
            inputs[len(head) :][hidden] = self.prompts.tokenizer.pad_token_id
        return Encoded(inputs, clean[1:], first=len(head) - 2)

    def _at(self, utterance: int) -> tuple[int, int]:
        return self.place[utterance]


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
        groups += joiner.short_groups(len(groups))
    order = random.permutation(len(groups))
    return [Sample(groups[i], epoch, number) for number, i in enumerate(order)]


def _drawn(pool: Pool, weights: list[float], random: np.random.Generator) -> Ints:
    """Utterances of one epoch: whole passes, and a random part for the fraction of a weight."""
    parts = [np.empty(0, dtype=np.int64)]
    for corpus, weight in enumerate(weights):
        members = np.flatnonzero(pool.corpus_of == corpus)
        parts += [members] * int(weight)
        extra = round((weight - int(weight)) * len(members))
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

    def short_groups(self, others: int) -> list[tuple[int, ...]]:
        """Additional groups of short utterances, for ``others`` groups of all kinds."""
        share = self.config.short_share
        short = np.flatnonzero(self.pool.code_counts <= self.short_codes)
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
