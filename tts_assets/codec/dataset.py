"""Training data of codecs and decoders: random windows of the training utterances."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tts_assets.codec.config import TrainingRecipe
from tts_assets.codec.xcodec2 import HOP, SAMPLE_RATE
from tts_assets.core.accounting import ValidationSplit, is_validation
from tts_assets.core.audio import Wave, read_wave, resample
from tts_assets.corpora.audio_paths import located_samples
from tts_assets.corpora.samples import Sample

CACHE_SAMPLES = 2 * 3600 * SAMPLE_RATE  # decoded audio in memory: two hours, 460 MB of float32


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

    The windows of step n follow from (seed, n) only. A restart therefore needs no saved position,
    and any number of ranks trains on the same global batches.
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
        self.train: list[Sample] = []
        self.validation: list[Sample] = []
        weights: list[float] = []
        for corpus, weight in sorted(recipe.corpora.items()):
            for sample in located_samples(samples[corpus]):
                if is_validation(sample.id, split):
                    self.validation.append(sample)
                else:
                    self.train.append(sample)
                    weights.append(weight * sample.duration)
        if not self.train:
            raise ValueError(
                f"{', '.join(sorted(recipe.corpora))} have no training utterance: "
                f"{len(self.validation)} are for validation; add recordings or corpora, or lower "
                "[validation] fraction"
            )
        cumulative = np.cumsum(np.array(weights) / np.sum(weights))
        self.cumulative = cumulative / cumulative[-1]  # of the probabilities of utterances
        self.validation.sort(key=lambda sample: sample.id)

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

    def whole(self, sample: Sample) -> Tensor:
        """One utterance as (1, samples), padded with zeros to a whole number of codes."""
        wave = torch.from_numpy(self.cache.read(sample.wav_path))
        hop = HOP * self.rate // SAMPLE_RATE
        return torch.nn.functional.pad(wave, (0, -len(wave) % hop)).unsqueeze(0)

    def _window(self, key: tuple[int, ...], length: int) -> Wave:
        """``length`` samples of one utterance, or of several in a row if it is shorter."""
        generator = np.random.default_rng(key)
        parts: list[Wave] = []
        while (missing := length - sum(map(len, parts))) > 0:
            # As Generator.choice with probabilities, which would sum them up for every window.
            drawn = self.cumulative.searchsorted(generator.random(), side="right")
            sample = self.train[int(drawn)]
            speed = self.speeds[generator.integers(len(self.speeds))]
            wave = self.cache.read(sample.wav_path, speed)
            if not parts and len(wave) > length:
                start = int(generator.integers(len(wave) - length + 1))
                wave = wave[start:]
            parts.append(wave[:missing])
        gain = self.gains[generator.integers(len(self.gains))]
        return np.concatenate(parts) * np.float32(10 ** (gain / 20))
