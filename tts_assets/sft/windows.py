"""Windows of token streams: what a pretraining recipe trains on.

Window ``k`` of a stream predicts its tokens ``k L + 1`` to ``(k + 1) L`` from those before, L being
``max_seq_len``: every token is predicted once but the stream's first. The rest behind the last
whole window is a shorter one, so that nothing is left out, and no utterance is too long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tts_assets.accounting import SetAside
from tts_assets.sft.config import SftRecipe
from tts_assets.sft.stream import DataError, Encoded, Group, Ints, Sample, drawn_epochs
from tts_assets.speechlm.text_ids import Rows


@dataclass(frozen=True)
class TokenStream:
    """Rows of token ids that are read as one stream.

    ``source`` is the number of its source, ``weight`` its epochs (of text: relative to other
    text), ``name`` what a row is found by.
    """

    rows: Rows
    source: int
    is_text: bool
    weight: float
    name: Callable[[int], str]

    def names(self, first: int, last: int) -> str:
        """The rows from token ``first`` to token ``last``."""
        rows = np.searchsorted(self.rows.bounds, [first, last], side="right") - 1
        names = [self.name(int(row)) for row in rows]
        return names[0] if rows[0] == rows[1] else " to ".join(names)


class Windows:
    """All windows of the streams of one split, a pool whose items are single samples."""

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
        (window,) = items
        return int(self.lengths[window])

    def source(self, window: int) -> int:
        return self.streams[self.stream_of[window]].source

    def identity(self, window: int) -> str:
        """Source, place in its stream, and the first and last row."""
        stream = self.streams[self.stream_of[window]]
        first = int(self.starts[window])
        last = first + int(self.lengths[window])
        where = f"{self.sources[stream.source]}, tokens {first} to {last}"
        return f"{where} ({stream.names(first, last)})"

    def encode(self, sample: Sample, code_dropout: float = 0.0, seed: int = 0) -> Encoded:
        (window,) = sample.items
        start = int(self.starts[window])
        end = start + int(self.lengths[window]) + 1
        ids = self.streams[self.stream_of[window]].rows.ids[start:end].astype(np.int64)
        return Encoded(ids[:-1], ids[1:], first=0)

    def groups(
        self, recipe: SftRecipe, token_rate: float, epoch: int, random: np.random.Generator
    ) -> list[Group]:
        """Windows of speech by their weights, and text up to its share of all tokens."""
        speech = self._drawn({n: s.weight for n, s in self._kind(is_text=False)}, random)
        text = {n: s.weight for n, s in self._kind(is_text=True)}
        share = recipe.pretraining.text_share if recipe.pretraining else 0.0
        if share:
            wanted = share / (1 - share) * int(self.lengths[speech].sum())
            factor = wanted / self._tokens(text)
            text = {number: factor * weight for number, weight in text.items()}
        windows = np.concatenate([speech, self._drawn(text, random)])
        return [(window,) for window in windows.tolist()]

    def _kind(self, is_text: bool) -> list[tuple[int, TokenStream]]:
        return [(n, s) for n, s in enumerate(self.streams) if s.is_text == is_text]

    def _tokens(self, weights: dict[int, float]) -> float:
        """Tokens of some streams, each as often as its weight says."""
        tokens = np.bincount(self.stream_of, self.lengths, minlength=len(self.streams))
        total = sum(weight * tokens[number] for number, weight in weights.items())
        if not total:
            raise DataError(
                "there is no text to mix in: add texts to the recipe, or set "
                "pretraining.text_share = 0"
            )
        return float(total)

    def _drawn(self, weights: dict[int, float], random: np.random.Generator) -> Ints:
        parts = [np.empty(0, dtype=np.int64)]
        for number, weight in weights.items():
            parts += drawn_epochs(np.flatnonzero(self.stream_of == number), weight, random)
        return np.concatenate(parts)
