"""Groups of utterances of one voice that become one sample (see ``Concatenation``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tts_assets.sft.stream import Group, Ints
from tts_assets.sft.tables import Concatenation

if TYPE_CHECKING:
    from tts_assets.sft.dataset import Pool


class Joiner:
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

    def join(self, utterances: Ints) -> list[Group]:
        """Partition ``utterances`` into groups, in their order within each voice."""
        open_groups: dict[int, list[int]] = {}
        wanted: dict[int, int] = {}
        groups: list[Group] = []
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

    def short_groups(self, utterances: Ints, others: int) -> list[Group]:
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
