"""N x M batches: which voices and which of their recordings a step sees, from (seed, step) alone.

Every pass goes through all voices in a new order, N at a time, however few recordings a voice has;
a voice's own recordings come round in turn, all of them before any again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tts_assets.config import ConfigError, digest_of
from tts_assets.speakers.audio import centred, fill
from tts_assets.speakers.config import AudioSettings, EncoderRecipe
from tts_assets.speakers.features import Item, MelStore

EQUALIZER_POINTS = 5  # gains between which a channel's curve is straight, over the mel bands


@dataclass(frozen=True)
class Crop:
    item: Item
    first: int


class Batches:
    """Crops of training voices, [rows, frames, bands]; M rows of each voice one after another."""

    def __init__(
        self, items: Sequence[Item], store: MelStore, recipe: EncoderRecipe, audio: AudioSettings
    ) -> None:
        self.store, self.recipe, self.audio = store, recipe, audio
        self.voices: dict[str, list[Item]] = {}
        for item in sorted(items, key=lambda item: (item.voice, item.recording.id)):
            self.voices.setdefault(item.voice, []).append(item)
        self.names = sorted(self.voices)
        if len(self.names) < recipe.speakers:
            raise ConfigError(
                f"a batch has {recipe.speakers} speakers, but there are {len(self.names)} voices "
                f"to train on: set speakers = {len(self.names)} or less, or add speeds or corpora"
            )

    def rows(self, step: int) -> tuple[list[Item], int]:
        """The N x M recordings of a step, and how many frames their crops have."""
        a_pass = len(self.names) // self.recipe.speakers
        number, place = divmod(step, a_pass)
        order = self._rng("voices", number).permutation(len(self.names))
        chosen = order[place * self.recipe.speakers :][: self.recipe.speakers]
        items = [item for v in chosen for item in self._turn(self.names[v], number)]
        lengths = self.recipe.least_frames, self.recipe.most_frames
        return items, int(self._rng("frames", step).integers(*lengths, endpoint=True))

    def _turn(self, voice: str, number: int) -> list[Item]:
        """The M recordings that a voice gives in a pass."""
        mine, count = self.voices[voice], self.recipe.utterances
        places = range(number * count, (number + 1) * count)
        rounds = {p // len(mine) for p in places}
        orders = {r: self._rng(voice, r).permutation(len(mine)) for r in rounds}
        return [mine[orders[p // len(mine)][p % len(mine)]] for p in places]

    def crops(self, step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, list[Item]]:
        """A rank's rows of a step's batch, as the model takes them."""
        items, frames = self.rows(step)
        share = len(items) // ranks
        mine = range(rank * share, (rank + 1) * share)
        made = [self._crop(items[row], frames, step, row) for row in mine]
        return centred(torch.stack(made), self.audio), [items[row] for row in mine]

    def _crop(self, item: Item, frames: int, step: int, row: int) -> Tensor:
        rng = self._rng("crop", step, row)
        first = int(rng.integers(max(0, item.frames - frames), endpoint=True))
        crop = fill(self.store(item, first, min(frames, item.frames)), frames, self.audio)
        if not self.recipe.equalize:
            return crop
        gains = rng.uniform(-1, 1, EQUALIZER_POINTS) * self.recipe.equalize
        bands = np.linspace(0, EQUALIZER_POINTS - 1, self.audio.mels)
        curve = np.interp(bands, np.arange(EQUALIZER_POINTS), gains)
        return crop + torch.from_numpy(curve * np.log(10) / 10).float()

    def _rng(self, *what: str | int) -> np.random.Generator:
        return np.random.default_rng(int(digest_of([self.recipe.seed, *what])[:16], 16))
