"""Encodes padded batches so that every clip has exactly the codes that it has alone.

Masks make the latents of a clip in a batch equal to those alone, up to rounding (see
``backends.py``): other shapes sum in another order. Rounding changes a code if a latent lies on the
boundary between two codes. The encoder therefore measures the distance of every latent from its
nearest boundary, its margin. A clip with a margin below :data:`SAFETY` times the largest rounding
difference seen so far is encoded again, alone and with one thread. That result defines the codes of
a clip.

:func:`read_ahead` decodes audio files in threads while the encoder works, with bounded memory.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from tts_assets.codec.model import Codec, Codes, Wave
from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import sha256_file
from tts_assets.core.audio import BrokenAudio, read_wave
from tts_assets.core.program import one_thread
from tts_assets.corpora.samples import AudioFolders, Sample

K = TypeVar("K")

AHEAD_SECONDS = 600.0  # of decoded audio that waits for the encoder: 38 MB at 16 kHz
SAFETY = 10.0  # times the largest rounding difference: clips nearer to a boundary are repeated
SHORTEST = 0.8  # of the longest clip in a batch: padding is less than a fifth
PROBED = 4  # clips that are encoded both ways first, to measure the rounding difference


class RoundingError(RuntimeError):
    """The rounding difference of batches is larger than the margin that repeated clips had."""


class BatchEncoder:
    """Encodes clips in batches, with the codes that :meth:`Codec.encode` gives each clip alone.

    ``effort`` counts the clips ``encoded``, those encoded ``again`` alone, their ``codes``, and the
    ``padded`` codes of their batches.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.effort: Counter[str] = Counter()
        self.probes = 0
        self.difference = 0.0  # largest between batch and alone, in quantization levels

    @property
    def tolerance(self) -> float:
        """The distance from a boundary, in levels, below which a clip is repeated."""
        return SAFETY * self.difference

    def batches(
        self, clips: Iterable[tuple[K, Wave | SetAside]], budget: int
    ) -> Iterator[list[tuple[K, Codes | SetAside]]]:
        """Yield batches of (key, codes (codes,)) for clips in descending order of length.

        A batch has at most ``budget`` codes including padding, which is less than a fifth of it; a
        longer clip is a batch alone. Clips that were set aside pass through.
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
        """Waveforms (samples,) of similar lengths to codes (codes,), in their order."""
        counts = [self.codec.codes(len(wave)) for wave in waves]
        together = len(waves) > 1 and self.codec.masking_problem is None
        padded = len(waves) * max(counts) if together else sum(counts)
        self.effort.update(encoded=len(waves), codes=sum(counts), padded=padded)
        if not together:
            return [self._alone(wave)[1] for wave in waves]
        codes, levels = self.codec.quantize(self.codec.latents(waves))
        margins = self.codec.margins(levels)
        chosen = []
        for row, (wave, count) in enumerate(zip(waves, counts, strict=True)):
            clip = codes[row, :count]
            probe = self.probes < PROBED
            if probe or margins[row, :count].min() < self.tolerance:
                clip = self._again(wave, levels[row, :count], clip, probe)
            chosen.append(clip)
        return chosen

    def _alone(self, wave: Wave) -> tuple[Tensor, Codes]:
        """Levels (codes, dimensions) and codes (codes,) of one clip, with one thread."""
        count = self.codec.codes(len(wave))
        with one_thread():
            codes, levels = self.codec.quantize(self.codec.latents([wave]))
            return levels[0, :count], codes[0, :count]

    def _again(self, wave: Wave, together: Tensor, known: Codes, probe: bool) -> Codes:
        """The codes of a clip alone; updates the rounding difference.

        ``together``: its levels in the batch, ``known``: its codes there. Raises
        :class:`RoundingError` if the levels differ by more than the tolerance, except for a
        ``probe``. Behind a code that rounding changed, the later stages of its frame quantize
        something else: of such a frame only the first level counts.
        """
        levels, codes = self._alone(wave)
        frames = (codes != known).reshape(-1, len(self.codec.frame))
        gaps = (levels - together).abs().amax(-1).reshape(frames.shape)
        gaps[torch.from_numpy(frames.any(axis=1)).to(gaps.device), 1:] = 0
        difference = float(gaps.max())
        if not probe and not difference <= self.tolerance:
            raise RoundingError(
                f"a clip's latents differ by {difference:.1e} levels alone and in a batch, but by "
                f"at most {self.difference:.1e} before: batches may give other codes. Write "
                "batch_tokens = 1 under [codec]: clips are then encoded one by one"
            )
        self.probes += probe
        self.effort["again"] += 1
        self.difference = max(self.difference, difference)
        return codes


def read_ahead(
    samples: Iterable[Sample], audio: AudioFolders, rate: int, workers: int
) -> Iterator[Wave | SetAside]:
    """Yield the waveform (samples,) at ``rate`` Hz of each sample, or the reason why it has none.

    ``audio`` are the folders of the samples. ``workers`` threads decode; at most
    :data:`AHEAD_SECONDS` of audio wait for the consumer.
    """
    waiting: deque[tuple[Sample, Future[Wave | SetAside]]] = deque()
    seconds = 0.0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for sample in samples:
            while waiting and seconds + sample.duration > AHEAD_SECONDS:
                first, future = waiting.popleft()
                seconds -= first.duration
                yield future.result()
            waiting.append((sample, pool.submit(read_sample, sample, audio, rate)))
            seconds += sample.duration
        for _, future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_sample(sample: Sample, audio: AudioFolders, rate: int) -> Wave | SetAside:
    """The waveform (samples,) at ``rate`` Hz, or a reason if the file cannot be used.

    A file that has changed since it was indexed is set aside: its codes would be stored under the
    digest of the indexed bytes, and reused from there by later shards. Details name no folder,
    because they are digested. Raises FileNotFoundError without the folder of the corpus.
    """
    path = audio.path(sample.wav_path)
    try:
        wave = read_wave(path, rate)
        indexed = sample.original_data.get("audio_sha256")
        changed = indexed is not None and sha256_file(path) != indexed
    except BrokenAudio as error:
        return SetAside(sample.id, error.reason, error.detail or sample.wav_path)
    except OSError as error:
        return SetAside(sample.id, "not readable", f"{sample.wav_path}: {error.strerror}")
    if changed:
        detail = f"{sample.wav_path}: materialize raw_corpus and what follows again"
        return SetAside(sample.id, "changed since it was indexed", detail)
    return wave
