"""The interface of a codec for all other stages: waveforms to codes and back.

:class:`BatchEncoder` encodes padded batches so that every clip has exactly the codes that it has
alone. Masks make the latents of a clip in a batch equal to those alone, up to rounding (see
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
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel

from tts_assets.codec.backends import (
    Backend,
    CompactBackend,
    Precision,
    PublishedBackend,
    codebooks_of,
    is_compact,
    open_compact,
    open_complete,
    snac_sizes,
)
from tts_assets.codec.decoder import CodecDecoder, open_decoder
from tts_assets.codec.residual import FAMILIES, open_snac
from tts_assets.codec.shard_files import Frame
from tts_assets.core.accounting import SetAside
from tts_assets.core.artifacts import CodecFacts, sha256_file
from tts_assets.core.audio import BrokenAudio, read_wave
from tts_assets.core.program import one_thread
from tts_assets.corpora.samples import AudioFolders, Sample

Wave = NDArray[np.float32]
Codes = NDArray[np.int64]
MODEL_TYPES = ("xcodec2", "neucodec", *FAMILIES)  # of transformers
K = TypeVar("K")

AHEAD_SECONDS = 600.0  # of decoded audio that waits for the encoder: 38 MB at 16 kHz
SAFETY = 10.0  # times the largest rounding difference: clips nearer to a boundary are repeated
SHORTEST = 0.8  # of the longest clip in a batch: padding is less than a fifth
PROBED = 4  # clips that are encoded both ways first, to measure the rounding difference


class Codec:
    """Encodes waveforms at :attr:`input_rate`, decodes to waveforms at ``facts.sample_rate``.

    :meth:`encode` and :meth:`decode` process clips one at a time. In a plain batch the codes of a
    clip would depend on the other clips: convolutions and attention see the padding, and even
    batches of equal lengths round differently. :class:`BatchEncoder` encodes batches exactly.

    The codes of a codec with several codebooks are one stream of whole frames (``shard_files.py``).
    """

    def __init__(self, backend: Backend, device: str) -> None:
        self.backend, self.device = backend, torch.device(device)
        self.decoder: CodecDecoder | None = None

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", precision: Precision = "fp32") -> Self:
        """Open a codec folder of this project, or a snapshot of a published codec.

        With ``precision = "bf16"`` the semantic encoder of X-Codec-2 and NeuCodec, nearly all of
        their arithmetic, runs in bfloat16, which changes some codes. Other codecs have no such
        layers, so their codes do not change.

        Raises ValueError if the folder holds no model of :data:`MODEL_TYPES` or SNAC, or if
        weights are missing.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no codec: it has no config.json")
        if snac_sizes(folder):
            return cls(open_snac(folder, device), device)
        compact = is_compact(folder)
        kind = AutoConfig.from_pretrained(folder).model_type
        if not compact and kind not in MODEL_TYPES:
            raise ValueError(f"{folder} holds a {kind!r} model; codecs are {MODEL_TYPES} and SNAC")
        codebooks = codebooks_of(folder)
        if codebooks is not None and kind not in FAMILIES:
            raise ValueError(f"codec.codebooks is {codebooks}, but this {kind} has one: remove it")
        if compact:
            return cls(CompactBackend(open_compact(folder).moved(device)), device)
        hint = (
            "; if it is an original X-Codec-2, name its .ckpt or model.safetensors itself as the "
            "checkpoint"
        )
        model = open_complete(AutoModel, folder, hint)
        if kind in FAMILIES:
            return cls(FAMILIES[kind](model.to(device), codebooks), device)
        return cls(PublishedBackend(model.to(device), device, precision), device)

    def use_decoder(self, folder: Path) -> Self:
        """Decode with a separate decoder for this codec's codes (see ``decoder.py``)."""
        self.decoder = open_decoder(folder).eval().to(self.device)
        return self

    @property
    def input_rate(self) -> int:
        """Sample rate of waveforms to encode, in Hz."""
        return self.backend.input_rate

    @property
    def facts(self) -> CodecFacts:
        """Rates and sizes, with those of the separate decoder if there is one."""
        if self.decoder is None:
            return self.backend.facts
        output = self.decoder.output
        return self.backend.facts.model_copy(
            update={"sample_rate": output.sample_rate, "hop_length": output.code_samples}
        )

    @property
    def masking_problem(self) -> str | None:
        """Why clips cannot share a padded batch; None if they can."""
        return self.backend.masking_problem

    def codes(self, samples: int) -> int:
        """The number of codes of a clip with ``samples`` at :attr:`input_rate`; 0: too short."""
        return self.backend.codes(samples)

    @property
    def sample_rate(self) -> int:
        """Sample rate of decoded waveforms, in Hz."""
        return self.facts.sample_rate

    @property
    def hop_length(self) -> int:
        """Decoded samples per frame; per code, for a codec with one codebook."""
        return self.facts.hop_length

    @cached_property
    def frame(self) -> Frame:
        """The codes of a frame."""
        return Frame(self.facts.frame or (self.codebook_size,))

    def samples(self, codes: int) -> int:
        """The number of decoded samples of ``codes`` codes, which are whole frames."""
        return codes // len(self.frame) * self.hop_length

    @property
    def token_rate(self) -> float:
        """Codes per second."""
        return self.facts.token_rate

    @property
    def codebook_size(self) -> int:
        """The number of different codes."""
        return self.facts.codebook_size

    @torch.inference_mode()
    def encode(self, waves: Sequence[Wave]) -> list[Codes]:
        """Mono float32 waveforms (samples,) at :attr:`input_rate` to codes (codes,).

        All codecs but NeuCodec round the number of frames up. Raises ValueError for a waveform that
        is empty, not one-dimensional, or too short for a code.
        """
        return [
            self.quantize(self.latents([wave]))[0][0, : self.codes(len(wave))] for wave in waves
        ]

    @torch.inference_mode()
    def encode_batch(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch with masks.

        ``waveform`` (clips, samples) and the ``lengths`` of the clips in samples (clips,) to codes
        (clips, codes), padded with zeros, and their numbers (clips,). Rounding differs from that of
        a clip alone, which :class:`BatchEncoder` corrects.
        """
        waves = [wave[:n].cpu().numpy() for wave, n in zip(waveform, lengths.tolist(), strict=True)]
        counts = [self.codes(len(wave)) for wave in waves]
        if self.masking_problem:
            rows = [torch.from_numpy(codes) for codes in self.encode(waves)]
        else:
            together = torch.from_numpy(self.quantize(self.latents(waves))[0])
            rows = [codes[:count] for codes, count in zip(together, counts, strict=True)]
        return pad_sequence(rows, batch_first=True), torch.tensor(counts)

    @torch.inference_mode()
    def latents(self, waves: Sequence[Wave]) -> Tensor:
        """Waveforms at :attr:`input_rate` to the quantizer's inputs, (clips, longest, dimensions).

        If :attr:`masking_problem` is None they differ from those of a clip alone by rounding only,
        as far as the codes of the clip depend on them. Raises ValueError as :meth:`encode` does.
        """
        for wave in waves:
            if wave.ndim != 1 or not len(wave):
                raise ValueError(f"a waveform has shape (samples,), not {wave.shape}")
            if not self.codes(len(wave)):
                raise ValueError(f"a waveform of {len(wave)} samples is too short for a code")
        hops = [self.backend.hops(len(wave)) for wave in waves]
        batch = torch.zeros(len(waves), max(hops) * self.backend.hop)
        for row, wave in zip(batch, waves, strict=True):
            row[: len(wave)] = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
        return self.backend.latents(batch.to(self.device), hops)

    @torch.inference_mode()
    def quantize(self, latents: Tensor) -> tuple[NDArray[np.int64], Tensor]:
        """Latents to codes (clips, codes), and their levels (see ``Backend.quantize``).

        The codes of clip ``i`` are the first ``codes(len(waves[i]))``.
        """
        codes, levels = self.backend.quantize(latents)
        return codes.cpu().numpy().astype(np.int64), levels

    @torch.inference_mode()
    def margins(self, levels: Tensor) -> NDArray[np.float32]:
        """Levels to the margins of their codes, (clips, codes), in units of a level.

        A code stays the same while no level changes by its margin.
        """
        return self.backend.margins(levels).cpu().numpy()

    @torch.inference_mode()
    def decode(self, codes: Sequence[NDArray[np.integer[Any]]]) -> list[Wave]:
        """Codes, each (codes,), to mono float32 waveforms of ``samples(codes)`` samples.

        Raises ValueError for codes that are empty, not one-dimensional, outside the codebook, or no
        whole frames.
        """
        waves = []
        for clip in codes:
            if clip.ndim != 1 or not len(clip):
                raise ValueError(f"codes have shape (codes,), not {clip.shape}")
            if clip.min() < 0 or clip.max() >= self.codebook_size:
                raise ValueError(
                    f"codes lie in [0, {self.codebook_size}), but these in [{clip.min()}, "
                    f"{clip.max()}]: they come from another codec, or are token ids"
                )
            if problem := self.frame.problem(clip):
                raise ValueError(f"codes are decoded in whole frames, but {problem}")
            tensor = torch.from_numpy(clip.astype(np.int64))
            waves.append(self.decode_batch(tensor.unsqueeze(0))[0].numpy())
        return waves

    @torch.inference_mode()
    def decode_batch(self, codes: Tensor) -> Tensor:
        """Codes (clips, codes) of clips of one length to waveforms (clips, samples).

        A decoder normalizes over the whole clip, so padding would change the output.
        """
        frames = self.backend.dequantized(codes.to(self.device))
        decode = self.backend.waves if self.decoder is None else self.decoder.waves
        return decode(frames).cpu()


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
