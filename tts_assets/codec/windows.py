"""The audio that codecs and decoders are trained on: random windows of the training utterances.

The windows of step n follow from (seed, n) only. A restart therefore needs no saved position, any
number of ranks trains on the same global batches, and processes can make the windows of later steps
ahead. A draw is a search in the cumulative weights. An utterance takes a row of an Arrow table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tts_assets.codec.training_config import TrainingRecipe
from tts_assets.codec.xcodec2 import HOP, SAMPLE_RATE
from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.audio import Wave, read_wave, resample
from tts_assets.corpora.samples import POOL, AudioFolders, scan_samples
from tts_assets.corpora.validation import group_key, held_out_rows, settled

CACHE_SAMPLES = 2 * 3600 * SAMPLE_RATE  # decoded audio in memory: two hours, 460 MB of float32
COLUMNS = ("id", "wav_path", "duration", "sample_rate")


class AudioCache:
    """A cache of decoded waveforms at one sample rate, which drops the least recently used."""

    def __init__(self, rate: int = SAMPLE_RATE, limit: int = CACHE_SAMPLES) -> None:
        """``rate`` in Hz; ``limit``: samples in memory."""
        self.rate, self.limit = rate, limit
        self.size = 0
        self.waves: OrderedDict[tuple[str, float], Wave] = OrderedDict()

    def read(self, path: str, speed: float = 1.0) -> Wave:
        """A file as float32 (samples,), played at ``speed``, which also changes the pitch.

        Raises :class:`~tts_assets.core.audio.BrokenAudio`.
        """
        key = path, speed
        if key in self.waves:
            self.waves.move_to_end(key)
            return self.waves[key]
        if speed == 1.0:
            wave = read_wave(Path(path), self.rate)
        else:
            wave = resample(self.read(path), round(speed * self.rate), self.rate)
        self.waves[key] = wave
        self.size += len(wave)
        while self.size > self.limit and len(self.waves) > 1:
            self.size -= len(self.waves.popitem(last=False)[1])
        return wave


class TrainingAudio:
    """Draws windows at random positions of the training utterances.

    ``train`` and ``validation`` have a row an utterance, with the columns :data:`COLUMNS`; the
    paths are absolute, and validation is sorted by id.
    """

    def __init__(
        self,
        samples: Mapping[str, Path],
        recipe: TrainingRecipe,
        split: ValidationSplit,
        rate: int = SAMPLE_RATE,
        speeds: tuple[float, ...] = (1.0,),
        gains: tuple[float, ...] = (0.0,),
    ) -> None:
        """``samples``: sample lists by corpus; ``rate``: of all waveforms, in Hz.

        Each window is played at one of ``speeds`` and amplified by one of ``gains`` in dB. Raises
        ValueError if no utterance is left for training.
        """
        self.recipe, self.rate = recipe, rate
        self.speeds, self.gains = speeds, gains
        self.cache = AudioCache(rate)
        tables = [
            utterances(samples[corpus], weight, split)
            for corpus, weight in sorted(recipe.corpora.items())
        ]
        every = pl.concat(tables)
        self.train = every.filter(~pl.col("held_out"))
        self.validation = every.filter("held_out").sort("id")
        if self.train.is_empty():
            raise ValueError(
                f"{', '.join(sorted(recipe.corpora))} have no training utterance: "
                f"{self.validation.height} are for validation; add recordings or corpora, or lower "
                "[validation] fraction"
            )
        weights = self.train["weight"].to_numpy()
        cumulative = np.cumsum(weights / np.sum(weights))
        self.cumulative = cumulative / cumulative[-1]  # of the probabilities of utterances

    def batch(self, step: int, rank: int, world_size: int) -> Tensor:
        """This rank's windows of one step, float32 (windows, samples).

        All windows of a step have the same length, drawn from ``window_seconds``.
        """
        seed, seconds = self.recipe.seed, self.recipe.window_seconds
        length = seconds[np.random.default_rng([seed, step]).integers(len(seconds))]
        count = self.recipe.batch_seconds // length
        mine = range(rank, count, world_size)
        windows = [self._window((seed, step, index), length * self.rate) for index in mine]
        return torch.from_numpy(np.stack(windows))

    def calibration(self) -> Tensor:
        """One minute of windows of two seconds, (30, samples), the same for any number of ranks."""
        seed = self.recipe.seed
        windows = [self._window((seed, 0, 0, index), 2 * self.rate) for index in range(30)]
        return torch.from_numpy(np.stack(windows))

    def held_out(self, clips: int) -> Iterator[Tensor]:
        """The first validation utterances as (1, samples), padded with zeros to whole codes."""
        for path in self.validation["wav_path"].head(clips):
            yield self.whole(path)

    def whole(self, path: str) -> Tensor:
        """One utterance as (1, samples), padded with zeros to a whole number of codes."""
        wave = torch.from_numpy(self.cache.read(path))
        hop = HOP * self.rate // SAMPLE_RATE
        return torch.nn.functional.pad(wave, (0, -len(wave) % hop)).unsqueeze(0)

    def draw(self, generator: np.random.Generator) -> tuple[str, float]:
        """The path of an utterance, and its speed."""
        # As Generator.choice with probabilities, which would sum them up for every window.
        drawn = self.cumulative.searchsorted(generator.random(), side="right")
        path: str = self.train["wav_path"][int(drawn)]
        return path, self.speeds[generator.integers(len(self.speeds))]

    def _window(self, key: tuple[int, ...], length: int) -> Wave:
        """``length`` samples of one utterance, or of several in a row if it is shorter."""
        generator = np.random.default_rng(key)
        parts: list[Wave] = []
        while (missing := length - sum(map(len, parts))) > 0:
            wave = self.cache.read(*self.draw(generator))
            if not parts and len(wave) > length:
                start = int(generator.integers(len(wave) - length + 1))
                wave = wave[start:]
            parts.append(wave[:missing])
        gain = self.gains[generator.integers(len(self.gains))]
        return np.concatenate(parts) * np.float32(10 ** (gain / 20))


def utterances(path: Path, weight: float, split: ValidationSplit) -> pl.DataFrame:
    """The utterances of a sample list: :data:`COLUMNS`, ``weight`` and ``held_out``.

    ``weight`` is the duration times the weight of the corpus. Raises FileNotFoundError if the
    folder of the corpus is not there.
    """
    split = settled(split, [path])
    found = scan_samples([path]).select(*COLUMNS, key=group_key(split)).collect()
    folders = AudioFolders.of(path)
    if not found["wav_path"].str.contains(rf"^(/|{POOL})").all():
        _ = folders.folder  # raises if it is not there
    # A hash a row: a second for a million utterances.
    held_out = held_out_rows(found, split)
    return found.drop("key").with_columns(
        folders.paths("wav_path"),
        (weight * pl.col("duration")).alias("weight"),
        pl.Series("held_out", held_out),
    )


class StepWindows(Dataset[Tensor]):
    """The windows of one rank in steps ``first`` to ``last - 1``, as a dataset of torch."""

    def __init__(self, audio: TrainingAudio, first: int, last: int, rank: int, ranks: int) -> None:
        self.audio, self.first, self.last = audio, first, last
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Tensor:
        return self.audio.batch(self.first + index, self.rank, self.ranks)


class WindowLoader:
    """Makes the windows of the next steps in processes, while the current step is computed."""

    def __init__(
        self, audio: TrainingAudio, steps: int, rank: int, ranks: int, *, workers: int
    ) -> None:
        """``workers``: processes; 0 makes the windows when they are asked for."""
        self.audio, self.steps, self.rank, self.ranks = audio, steps, rank, ranks
        self.workers = workers
        self._next: int | None = None
        self._windows: Iterator[Tensor] = iter(())

    def at(self, step: int) -> Tensor:
        """The windows of ``step``, float32 (windows, samples); fast for consecutive steps.

        Raises :class:`~tts_assets.core.audio.BrokenAudio`; in a process, torch raises RuntimeError
        with its message.
        """
        if step != self._next:
            windows = StepWindows(self.audio, step, self.steps, self.rank, self.ranks)
            self._windows = iter(DataLoader(windows, batch_size=None, num_workers=self.workers))
        self._next = step + 1
        return next(self._windows)
