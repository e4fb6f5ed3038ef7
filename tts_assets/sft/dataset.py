"""Utterances of code arrays as samples to train on.

Texts are tokenized once; their ids, the codes and the samples stay on disk, memory-mapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tts_assets.arrays.arrays import CodeTable, Split
from tts_assets.sft.concatenate import Joiner
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.stream import DROPOUT, Encoded, Group, Ints, Sample, drawn_epochs, too_long
from tts_assets.speechlm.prompts import NO_IDS, PromptFormat
from tts_assets.speechlm.text_ids import DESCRIBED, TextIds, read_text_ids, text_ids
from tts_assets.speechlm.tokenizer import tokenizer_digest


class Pool:
    """All utterances of one split of several corpora that fit into ``max_seq_len``.

    ``tokens`` holds, by corpus, the folder of its ``token_arrays``; a corpus without texts of this
    tokenizer there is tokenized now, to the same ids. ``dropped`` are utterances that do not fit.
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
        self._end = np.array([prompts.vocabulary.speech_end])
        self.corpora = self.sources = list(folders)
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
        self.dropped = [
            too_long(table.sample(int(row))["id"], int(own[row]))
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

    def source(self, utterance: int) -> int:
        """The number of its corpus."""
        return int(self.corpus_of[utterance])

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

    def length(self, utterances: Group) -> int:
        """Tokens of the sample that these utterances make."""
        length = int(self.alone[utterances[0]])
        return length + sum(int(self.added[u]) for u in utterances[1:])

    def encode(self, sample: Sample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        """Token ids of a sample. Up to ``code_dropout`` of its input codes become padding tokens:
        of each sample a share between 0 and that, drawn from ``seed`` and the sample's place."""
        (corpus, row), *rest = places = [self._at(utterance) for utterance in sample.items]
        texts = [self.texts[corpus].text[row], *(self.texts[c].later[r] for c, r in rest)]
        text = np.concatenate(texts) if rest else texts[0]
        head = self.prompts.head(text, self.texts[corpus].description[row])
        codes = [self.tables[c][r] for c, r in places]
        ids = self.prompts.vocabulary.ids(np.concatenate(codes) if rest else codes[0])
        clean = np.concatenate([head, ids, self._end])
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
        """Single utterances, or groups of one voice where the recipe concatenates."""
        parts: list[Ints] = []
        for corpus, name in enumerate(self.corpora):
            members = np.flatnonzero(self.corpus_of == corpus)
            parts += drawn_epochs(members, recipe.corpora[name], random)
        utterances = random.permutation(_joined(parts))
        if recipe.concatenate is None:
            return [(int(u),) for u in utterances]
        config = recipe.concatenate.in_epoch(epoch)
        joiner = Joiner(self, config, recipe.max_seq_len, token_rate, random)
        groups = joiner.join(utterances)
        return groups + joiner.short_groups(np.sort(utterances), len(groups))

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
