"""Backends of codecs with several codebooks: DAC, EnCodec and Mimi of ``transformers``, and SNAC.

They quantize in stages (residual vector quantization, Zeghidour et al., 2021): each stage takes the
nearest entry of its codebook, and the next one quantizes what is left. A clip is padded with zeros
to whole frames, as the feature extractors of DAC and SNAC do. The codes of all stages are written
as one stream (``shard_files.py``).

The *levels* of a code are the vector that its stage looks up. Its distance from an entry changes by
no more than the vector does, so the nearest entry stays the nearest while the vector moves by less
than half of the difference between the two smallest distances. The *margin* is this length, less
the rounding of the distances themselves, in units of one dimension.

In padded batches, :class:`~tts_assets.codec.backends.ClipEnds` masks the convolutions of DAC and
SNAC. Those of EnCodec and Mimi, the LSTM and the attention are causal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.dac.modeling_dac import Snake1d

from tts_assets.codec.backends import (
    WEIGHTS_FILE,
    ClipEnds,
    codebooks_of,
    convolution_problem,
    snac_sizes,
)
from tts_assets.codec.shard_files import nested_pattern
from tts_assets.core.artifacts import CodecFacts

Stage = tuple[Tensor, Tensor]
"""Vectors that a stage looks up, (clips, dimensions, codes), and its codes (clips, codes)."""
ROUNDING = 4 * torch.finfo(torch.float32).eps  # of a sum of n products, relative: times sqrt(n)


class ResidualBackend:
    """What all of these codecs share; the subclasses have the modules of a family."""

    masking_problem: str | None = None
    ends: ClipEnds

    def __init__(
        self, model: Any, rate: int, hop: int, sizes: Sequence[int], pattern: tuple[int, ...]
    ) -> None:
        """``rate`` in Hz, ``hop`` in samples per frame; ``sizes`` of the codebooks in use."""
        self.model = model.eval()
        self.input_rate, self.hop, self.pattern = rate, hop, pattern
        self.sizes = [sizes[own] for own in pattern]
        self.offsets = [0, *accumulate(self.sizes[:-1])]
        self.facts = CodecFacts(
            sample_rate=rate,
            hop_length=hop,
            token_rate=len(pattern) * rate / hop,
            codebook_size=sum(self.sizes),
            codebooks=tuple(sizes),
            pattern=pattern,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )

    def hops(self, samples: int) -> int:
        """See :meth:`Backend.hops`: a hop is a frame."""
        return math.ceil(samples / self.hop)

    def codes(self, samples: int) -> int:
        """See :meth:`Backend.codes`."""
        return self.hops(samples) * len(self.pattern)

    def latents(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        """See :meth:`Backend.latents`."""
        return self.encoded(waves.unsqueeze(1), hops).transpose(1, 2)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Backend.quantize`."""
        levels, codes = zip(*self.stages(latents.transpose(1, 2)), strict=True)
        offset = torch.tensor(self.offsets, device=latents.device)
        flat = self._interleaved([own.unsqueeze(-1) for own in codes])[..., 0]
        flat = (flat.unflatten(1, (-1, len(self.pattern))) + offset).flatten(1)
        return flat, self._interleaved([own.transpose(1, 2) for own in levels])

    def margins(self, levels: Tensor) -> Tensor:
        """See :meth:`Backend.margins`."""
        tables = self.tables()
        frames = levels.unflatten(1, (-1, len(self.pattern)))
        columns = [margin(frames[:, :, k], tables[own]) for k, own in enumerate(self.pattern)]
        return torch.stack(columns, dim=2).flatten(1)

    def dequantized(self, codes: Tensor) -> Tensor:
        """See :meth:`Backend.dequantized`."""
        frames = codes.unflatten(1, (-1, len(self.pattern)))
        frames = frames - torch.tensor(self.offsets, device=codes.device)
        by_codebook = [
            frames[:, :, [k for k, own in enumerate(self.pattern) if own == codebook]].flatten(1)
            for codebook in range(max(self.pattern) + 1)
        ]
        return self.embedded(by_codebook).transpose(1, 2)

    def waves(self, frames: Tensor) -> Tensor:
        """See :meth:`Backend.waves`."""
        return self.decoded(frames.transpose(1, 2))[:, 0]

    def _interleaved(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of each codebook, (clips, its codes, n), to those of the stream."""
        count = [self.pattern.count(codebook) for codebook in range(len(parts))]
        frames = [own.unflatten(1, (-1, n)) for own, n in zip(parts, count, strict=True)]
        seen = [0] * len(parts)
        columns = []
        for codebook in self.pattern:
            columns.append(frames[codebook][:, :, seen[codebook]])
            seen[codebook] += 1
        return torch.stack(columns, dim=2).flatten(1, 2)

    def encoded(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        """Clips (clips, 1, samples) to latents (clips, hidden, length), by a masked encoder."""
        with self.ends.at(hops, waves.shape[-1] // self.hop):
            hidden: Tensor = self.model.encoder(waves)
        return hidden

    def stages(self, latents: Tensor) -> Iterator[Stage]:
        """Quantize latents (clips, hidden, length), with the arithmetic of the codec's package."""
        raise NotImplementedError

    def tables(self) -> list[Tensor]:
        """The entries of each codebook that its stage compares, (size, dimensions)."""
        raise NotImplementedError

    def embedded(self, codes: list[Tensor]) -> Tensor:
        """Codes (clips, codes) of each codebook to the decoder's input (clips, hidden, length)."""
        raise NotImplementedError

    def decoded(self, hidden: Tensor) -> Tensor:
        """The decoder's input (clips, hidden, length) to clips (clips, 1, samples)."""
        raise NotImplementedError


def margin(vectors: Tensor, table: Tensor) -> Tensor:
    """The margin of each of ``vectors`` (clips, codes, dimensions); 0 if it has none.

    ``table`` (size, dimensions) are the entries.
    """
    wide, entries = vectors.double(), table.double()
    nearest = torch.cdist(wide, entries.expand(len(wide), -1, -1)).topk(2, largest=False).values
    norms = wide.square().sum(-1) + entries.square().sum(-1).max()
    dimensions = table.shape[1]
    rounding = ROUNDING * math.sqrt(dimensions) * norms / nearest.sum(-1).clamp_min(1e-12)
    free = (nearest[..., 1] - nearest[..., 0]) / 2 - rounding
    return (free.clamp_min(0) / math.sqrt(dimensions)).float()


def chosen(codebooks: int | None, known: int, least: int = 1) -> int:
    """How many of the ``known`` codebooks are used; ``None``: all.

    Raises ValueError if the codec cannot decode from so few or so many.
    """
    if codebooks is not None and not least <= codebooks <= known:
        allowed = f"between {least} and {known}" if least < known else f"{known}"
        raise ValueError(f"codec.codebooks is {codebooks}; this codec has {allowed}: write that")
    return codebooks or known


def without_parametrizations(model: nn.Module) -> None:
    """Compute normalized weights once instead of in each call."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


class DacBackend(ResidualBackend):
    """``DacModel`` of transformers (Kumar et al., 2023)."""

    def __init__(self, model: Any, codebooks: int | None = None) -> None:
        config = model.config
        count = chosen(codebooks, config.n_codebooks)
        sizes = [config.codebook_size] * count
        super().__init__(model, config.sampling_rate, config.hop_length, sizes, (*range(count),))
        self.quantizers = model.quantizer.quantizers[:count]
        self.masking_problem = convolution_problem(model.encoder, (Snake1d,))
        self.ends = ClipEnds(model.encoder)

    def stages(self, latents: Tensor) -> Iterator[Stage]:
        """See :meth:`ResidualBackend.stages`."""
        for quantizer in self.quantizers:
            quantized, _, _, codes, projected = quantizer(latents)
            yield F.normalize(projected), codes
            latents = latents - quantized

    def tables(self) -> list[Tensor]:
        """See :meth:`ResidualBackend.tables`."""
        return [F.normalize(quantizer.codebook.weight) for quantizer in self.quantizers]

    def embedded(self, codes: list[Tensor]) -> Tensor:
        """See :meth:`ResidualBackend.embedded`."""
        hidden: Tensor = self.model.quantizer.from_codes(torch.stack(codes, dim=1))[0]
        return hidden

    def decoded(self, hidden: Tensor) -> Tensor:
        """See :meth:`ResidualBackend.decoded`.

        Odd strides make its output some samples shorter than the frames: zeros follow.
        """
        waves = self.model.decoder(hidden)
        return F.pad(waves, (0, hidden.shape[-1] * self.hop - waves.shape[-1]))


def euclidean_stages(layers: Sequence[Any], residual: Tensor) -> Iterator[Stage]:
    """The stages of EnCodec and Mimi for ``residual`` (clips, dimensions, length)."""
    for layer in layers:
        codes = layer.encode(residual)
        yield residual, codes
        residual = residual - layer.decode(codes)


class EncodecBackend(ResidualBackend):
    """``EncodecModel`` of transformers (Défossez et al., 2022), of mono audio at 24 kHz."""

    def __init__(self, model: Any, codebooks: int | None = None) -> None:
        """Raises ValueError for the model of stereo music at 48 kHz."""
        config = model.config
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise ValueError(
                "this EnCodec scales stereo audio in chunks of a second, which gives no single "
                "stream of codes: use facebook/encodec_24khz"
            )
        count = chosen(codebooks, config.num_quantizers)
        sizes = [config.codebook_size] * count
        super().__init__(model, config.sampling_rate, config.hop_length, sizes, (*range(count),))
        without_parametrizations(model)
        if not config.use_causal_conv or config.norm_type != "weight_norm":
            self.masking_problem = "its convolutions are not causal, or it normalizes whole clips"
        self.layers = model.quantizer.layers[:count]
        self.ends = ClipEnds(model.encoder)

    def stages(self, latents: Tensor) -> Iterator[Stage]:
        """See :meth:`ResidualBackend.stages`."""
        return euclidean_stages(self.layers, latents)

    def tables(self) -> list[Tensor]:
        """See :meth:`ResidualBackend.tables`."""
        return [layer.codebook.embed for layer in self.layers]

    def embedded(self, codes: list[Tensor]) -> Tensor:
        """See :meth:`ResidualBackend.embedded`."""
        hidden: Tensor = self.model.quantizer.decode(torch.stack(codes))
        return hidden

    def decoded(self, hidden: Tensor) -> Tensor:
        """See :meth:`ResidualBackend.decoded`."""
        waves: Tensor = self.model.decoder(hidden)
        return waves


class MimiBackend(ResidualBackend):
    """``MimiModel`` of transformers (Défossez et al., 2024): a semantic and acoustic codebooks."""

    def __init__(self, model: Any, codebooks: int | None = None) -> None:
        config = model.config
        count = chosen(codebooks, config.num_quantizers, config.num_semantic_quantizers)
        hop = round(config.sampling_rate / config.frame_rate)
        sizes = [config.codebook_size] * count
        super().__init__(model, config.sampling_rate, hop, sizes, (*range(count),))
        if not config.use_causal_conv:
            self.masking_problem = "its convolutions are not causal"
        semantic = config.num_semantic_quantizers
        quantizer = model.quantizer
        self.parts = [
            (part, part.layers[:used])
            for part, used in (
                (quantizer.semantic_residual_vector_quantizer, semantic),
                (quantizer.acoustic_residual_vector_quantizer, count - semantic),
            )
        ]

    def encoded(self, waves: Tensor, hops: Sequence[int]) -> Tensor:
        """See :meth:`ResidualBackend.encoded`."""
        hidden = self.model.encoder(waves).transpose(1, 2)
        hidden = self.model.encoder_transformer(hidden, use_cache=False, return_dict=True)[0]
        downsampled: Tensor = self.model.downsample(hidden.transpose(1, 2))
        return downsampled

    def stages(self, latents: Tensor) -> Iterator[Stage]:
        """See :meth:`ResidualBackend.stages`."""
        for part, layers in self.parts:
            yield from euclidean_stages(
                layers, latents if part.input_proj is None else part.input_proj(latents)
            )

    def tables(self) -> list[Tensor]:
        """See :meth:`ResidualBackend.tables`."""
        return [layer.codebook.embed for _, layers in self.parts for layer in layers]

    def embedded(self, codes: list[Tensor]) -> Tensor:
        """See :meth:`ResidualBackend.embedded`."""
        hidden: Tensor = self.model.quantizer.decode(torch.stack(codes, dim=1))
        return hidden

    def decoded(self, hidden: Tensor) -> Tensor:
        """See :meth:`ResidualBackend.decoded`."""
        hidden = self.model.upsample(hidden).transpose(1, 2)
        hidden = self.model.decoder_transformer(hidden, use_cache=False, return_dict=True)[0]
        waves: Tensor = self.model.decoder(hidden.transpose(1, 2))
        return waves


FAMILIES: Mapping[str, Callable[[Any, int | None], ResidualBackend]] = {
    "dac": DacBackend,
    "encodec": EncodecBackend,
    "mimi": MimiBackend,
}  # by the model type of transformers


class SnacBackend(ResidualBackend):
    """``SNAC`` of the package ``snac`` (Siuzdak et al., 2024), without attention: 24 kHz."""

    def __init__(self, model: Any, codebooks: int | None = None) -> None:
        """Raises ValueError for the models of music, whose attention sees fixed windows."""
        if model.attn_window_size is not None:
            raise ValueError(
                "this SNAC has attention over fixed windows: use hubertsiuzdak/snac_24khz"
            )
        strides = tuple(model.vq_strides)
        count = chosen(codebooks, len(strides), len(strides))
        rate, hop = model.sampling_rate, int(model.hop_length) * strides[0]
        super().__init__(model, rate, hop, [model.codebook_size] * count, nested_pattern(strides))
        from snac.layers import Snake1d as Snake

        without_parametrizations(model)
        for seed, block in enumerate(model.decoder.model):
            replace_noise(block, seed)
        self.masking_problem = convolution_problem(model.encoder, (Snake,))
        self.ends = ClipEnds(model.encoder)

    def stages(self, latents: Tensor) -> Iterator[Stage]:
        """See :meth:`ResidualBackend.stages`."""
        for quantizer in self.model.quantizer.quantizers:
            pooled = latents
            if quantizer.stride > 1:
                pooled = F.avg_pool1d(latents, quantizer.stride, quantizer.stride)
            quantized, codes = quantizer(latents)
            yield F.normalize(quantizer.in_proj(pooled)), codes
            latents = latents - quantized

    def tables(self) -> list[Tensor]:
        """See :meth:`ResidualBackend.tables`."""
        return [F.normalize(own.codebook.weight) for own in self.model.quantizer.quantizers]

    def embedded(self, codes: list[Tensor]) -> Tensor:
        """See :meth:`ResidualBackend.embedded`."""
        hidden: Tensor = self.model.quantizer.from_codes(codes)
        return hidden

    def decoded(self, hidden: Tensor) -> Tensor:
        """See :meth:`ResidualBackend.decoded`."""
        waves: Tensor = self.model.decoder(hidden)
        return waves


class SeededNoise(nn.Module):
    """The noise block of SNAC's decoder with the same noise in each call.

    A longer clip starts with the noise of a shorter one, on every device, so waveforms depend on
    their codes alone, and a stream has the noise of the whole clip.
    """

    def __init__(self, linear: nn.Module, seed: int) -> None:
        super().__init__()
        self.linear, self.seed = linear, seed

    def forward(self, hidden: Tensor) -> Tensor:
        """Add noise to (clips, channels, length), scaled by a projection of the input."""
        generator = torch.Generator().manual_seed(self.seed)
        # The last numbers of a draw whose length is no multiple of 16 depend on the length.
        length = math.ceil(hidden.shape[-1] / 16) * 16
        noise = torch.randn(length, generator=generator)[: hidden.shape[-1]]
        return hidden + noise.to(hidden) * self.linear(hidden)


def replace_noise(block: nn.Module, seed: int) -> None:
    """Replace the noise block in a decoder block of SNAC, if it has one."""
    from snac.layers import NoiseBlock

    for parts in [module for module in block.modules() if isinstance(module, nn.Sequential)]:
        for name, part in parts.named_children():
            if isinstance(part, NoiseBlock):
                parts[int(name)] = SeededNoise(part.linear, seed)


def open_snac(folder: Path, device: str) -> SnacBackend:
    """The SNAC of a codec folder. Raises ValueError if the package is not installed."""
    try:
        from snac import SNAC
    except ImportError as error:
        raise ValueError(
            "SNAC needs the package snac: install it with the extra of this project, "
            "pip install --no-deps snac==1.2.1"
        ) from error
    model = SNAC(**snac_sizes(folder))
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return SnacBackend(model.float().to(device), codebooks_of(folder))
