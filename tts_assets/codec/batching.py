"""Padded batches of clips whose codes are those of every clip alone, to the last one.

Masks make a clip's latents in a batch equal to those alone but for rounding (see ``masking.py``):
other shapes take other paths through the same sums. That flips a code where a latent lies on the
boundary between two levels. So every latent's distance to its nearest boundary is looked at, and
a clip that comes nearer than :data:`SAFETY` times the largest difference seen is encoded again,
alone. What "alone" gives is by definition right: one clip, one thread.

Reads audio ahead of the encoder: several files at once, at bounded memory.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tts_assets.codec.model import Codec, Codes, Wave
from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import BrokenAudio, read_wave
from tts_assets.corpora.samples import Sample

K = TypeVar("K")

SAFETY = 10.0  # doubtful: nearer to a boundary than so many times the largest difference seen
SHORTEST = 0.8  # of the longest in a batch: padding is less than a fifth
PROBED = 4  # clips that are encoded both ways before any batch is believed


class RoundingError(RuntimeError):
    """Batches round so differently that their codes are not certain."""


class BatchEncoder:
    """Encodes clips together with the codes that :meth:`Codec.encode` gives each alone.

    ``effort`` counts clips ``encoded``, of them ``again`` alone, their ``codes``, and the
    ``padded`` codes of their batches.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.effort: Counter[str] = Counter()
        self.probes = 0
        self.difference = 0.0  # largest seen between batch and alone, in quantization levels

    @property
    def tolerance(self) -> float:
        """In quantization levels; boundaries lie 1 apart."""
        return SAFETY * self.difference

    def batches(
        self, clips: Iterable[tuple[K, Wave | SetAside]], budget: int
    ) -> Iterator[list[tuple[K, Codes | SetAside]]]:
        """Clips under any key, in the order of their length, to batches of their codes.

        A batch has at most ``budget`` codes with its padding, which is less than a fifth of it; a
        clip longer than that is a batch of its own. What was set aside passes through.
        """
        keys: list[K] = []
        waves: list[Wave] = []
        longest = 0
        for key, wave in clips:
            if isinstance(wave, SetAside):
                yield [(key, wave)]
                continue
            count = self.codec.codes(len(wave))
            longest = max(longest, count)
            full = longest * (len(waves) + 1) > budget
            if waves and (full or count < SHORTEST * longest):
                yield list(zip(keys, self.encode(waves), strict=True))
                keys, waves, longest = [], [], count
            keys.append(key)
            waves.append(wave)
        if waves:
            yield list(zip(keys, self.encode(waves), strict=True))

    def encode(self, waves: Sequence[Wave]) -> list[Codes]:
        """Waveforms at 16 kHz to codes, padded to the longest: call it with similar lengths."""
        counts = [self.codec.codes(len(wave)) for wave in waves]
        together = len(waves) > 1 and self.codec.obstacle is None
        padded = len(waves) * max(counts) if together else sum(counts)
        self.effort.update(encoded=len(waves), codes=sum(counts), padded=padded)
        if not together:
            return [self._alone(wave)[1] for wave in waves]
        latents = self.codec.latents(waves)
        codes = self.codec.quantize(latents)
        levels = self.codec.levels(latents)
        margins = distance_to_boundary(levels)
        chosen = []
        for row, (wave, count) in enumerate(zip(waves, counts, strict=True)):
            clip = codes[row, :count]
            probe = self.probes < PROBED
            if probe or margins[row, :count].min() < self.tolerance:
                clip = self._again(wave, levels[row, :count], probe)
            chosen.append(clip)
        return chosen

    def _alone(self, wave: Wave) -> tuple[Tensor, Codes]:
        """Levels (codes, dimensions) and codes."""
        count = self.codec.codes(len(wave))
        with one_thread():
            latents = self.codec.latents([wave])[:, :count]
            return self.codec.levels(latents)[0], self.codec.quantize(latents)[0]

    def _again(self, wave: Wave, together: Tensor, probe: bool) -> Codes:
        """The codes of a doubtful clip, and what its two results tell of rounding."""
        levels, codes = self._alone(wave)
        difference = float((levels - together).abs().max())
        if not probe and not difference <= self.tolerance:
            raise RoundingError(
                f"a clip's latents differ by {difference:.1e} levels alone and in a batch, but by "
                f"at most {self.difference:.1e} before: codes of batches are not certain. Write "
                "batch_tokens = 1 under [codec]: clips are then encoded one by one"
            )
        self.probes += probe
        self.effort["again"] += 1
        self.difference = max(self.difference, difference)
        return codes


def distance_to_boundary(levels: Tensor) -> NDArray[np.float32]:
    """Levels (clips, codes, dimensions) to the distance of each code's nearest latent from where
    rounding changes, (clips, codes)."""
    distances = 0.5 - (levels - levels.round()).abs()
    return distances.amin(dim=-1).cpu().numpy()


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are split among threads: with one their rounding is the same on every machine size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


AHEAD_SECONDS = 600.0  # of audio that waits for the encoder: 38 MB at 16 kHz


def read_ahead(samples: Iterable[Sample], rate: int, workers: int) -> Iterator[Wave | SetAside]:
    """Of each sample, in the order given, the waveform (samples,) at ``rate`` Hz, or the reason
    why it has none."""
    waiting: deque[tuple[Sample, Future[Wave | SetAside]]] = deque()
    seconds = 0.0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for sample in samples:
            while waiting and seconds + sample.duration > AHEAD_SECONDS:
                first, future = waiting.popleft()
                seconds -= first.duration
                yield future.result()
            waiting.append((sample, pool.submit(read_sample, sample, rate)))
            seconds += sample.duration
        for _, future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_sample(sample: Sample, rate: int) -> Wave | SetAside:
    """The waveform at ``rate`` Hz, if the file is the one that was indexed: other bytes would go
    into the codes of the digest that the sample names, and from there into later shards."""
    path = Path(sample.wav_path)
    try:
        wave = read_wave(path, rate)
        indexed = sample.original_data.get("audio_sha256")
        changed = indexed is not None and sha256_file(path) != indexed
    except BrokenAudio as error:
        return SetAside(sample.id, error.reason, error.detail or str(error.path))
    except OSError as error:
        return SetAside(sample.id, "not readable", f"{path}: {error.strerror}")
    if changed:
        detail = f"{path}: materialize raw_corpus and what follows again"
        return SetAside(sample.id, "changed since it was indexed", detail)
    return wave
