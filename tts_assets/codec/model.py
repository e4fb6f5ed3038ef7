"""A codec as everything else uses it: waveforms to codes and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel

from tts_assets.codec.backends import Backend, CompactBackend, Precision, PublishedBackend
from tts_assets.codec.decoder import CodecDecoder, open_decoder
from tts_assets.codec.storage import is_compact, open_compact
from tts_assets.codec.xcodec2 import HOP, SAMPLE_RATE
from tts_assets.core.artifacts import CodecFacts

Wave = NDArray[np.float32]
Codes = NDArray[np.int64]
FAMILIES = ("xcodec2", "neucodec")


class Codec:
    """Encodes waveforms at :attr:`input_rate`, decodes to waveforms at ``facts.sample_rate``.

    :meth:`encode` and :meth:`decode` take clips one at a time. In a plain batch a clip's codes
    would depend on its mates: convolutions and attention see the padding, and even batches of
    equal lengths round differently. ``batching.py`` encodes batches all the same, exactly.
    """

    input_rate = SAMPLE_RATE

    def __init__(self, backend: Backend, device: str) -> None:
        self.backend, self.device = backend, torch.device(device)
        self.decoder: CodecDecoder | None = None

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", precision: Precision = "fp32") -> Self:
        """Open a codec folder, ours or a snapshot of a published one.

        ``precision`` of encoding: with ``bf16`` the semantic encoder of a published codec, nearly
        all of its arithmetic, runs in half precision, and some of its codes are others. Codecs
        that this project trained have nothing there that half precision would make faster, and
        the same codes with both.
        Raises :class:`ValueError` for a model that is no codec of these families, or whose
        weights are not complete.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no codec: it has no config.json")
        family = AutoConfig.from_pretrained(folder).model_type
        if family not in FAMILIES:
            raise ValueError(f"{folder} holds a {family!r} model; codecs are {FAMILIES}")
        if is_compact(folder):
            return cls(CompactBackend(open_compact(folder).moved(device)), device)
        model, found = AutoModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(
                f"{folder} lacks {len(missing)} weights of the class {type(model).__name__}, the "
                f"first is {missing[0]}; if it is an original X-Codec-2, name its .ckpt or "
                "model.safetensors itself as the checkpoint"
            )
        return cls(PublishedBackend(model.to(device), device, precision), device)

    def use_decoder(self, folder: Path) -> Self:
        """Decode with a decoder that was trained for this codec's codes (see ``decoder.py``)."""
        self.decoder = open_decoder(folder).eval().to(self.device)
        return self

    @property
    def facts(self) -> CodecFacts:
        if self.decoder is None:
            return self.backend.facts
        output = self.decoder.output
        return self.backend.facts.model_copy(
            update={"sample_rate": output.sample_rate, "hop_length": output.code_samples}
        )

    @property
    def obstacle(self) -> str | None:
        """Why clips cannot share a padded batch; None if they can."""
        return self.backend.obstacle

    def codes(self, samples: int) -> int:
        """How many codes a clip of so many samples at :attr:`input_rate` has; 0: too short."""
        return self.backend.codes(samples)

    @property
    def sample_rate(self) -> int:
        """Of decoded waveforms, in Hz."""
        return self.facts.sample_rate

    @property
    def hop_length(self) -> int:
        """Decoded samples of one code."""
        return self.facts.hop_length

    @property
    def token_rate(self) -> float:
        """Codes a second."""
        return self.facts.token_rate

    @property
    def codebook_size(self) -> int:
        return self.facts.codebook_size

    @torch.inference_mode()
    def encode(self, waves: Sequence[Wave]) -> list[Codes]:
        """Mono float32 waveforms at 16 kHz to integer codes, one for every 320 samples begun."""
        return [self.quantize(self.latents([wave]))[0, : self.codes(len(wave))] for wave in waves]

    @torch.inference_mode()
    def encode_batch(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a padded batch, masked: (clips, longest) with their samples (clips,) to
        codes (clips, longest) with their numbers (clips,); behind a clip's codes are zeros.

        Rounding is not the same as for clips alone: see ``batching.py``, which makes certain."""
        waves = [wave[:n].cpu().numpy() for wave, n in zip(waveform, lengths.tolist(), strict=True)]
        counts = [self.codes(len(wave)) for wave in waves]
        if self.obstacle:
            rows = [torch.from_numpy(codes) for codes in self.encode(waves)]
        else:
            together = torch.from_numpy(self.quantize(self.latents(waves)))
            rows = [codes[:count] for codes, count in zip(together, counts, strict=True)]
        return pad_sequence(rows, batch_first=True), torch.tensor(counts)

    @torch.inference_mode()
    def latents(self, waves: Sequence[Wave]) -> Tensor:
        """A padded batch of waveforms to what is quantized, (clips, longest, dimensions): of clip
        ``i`` the first ``codes(len(waves[i]))``. A clip's latents are those that it has alone up
        to rounding, if :attr:`obstacle` is None."""
        for wave in waves:
            if wave.ndim != 1 or not len(wave):
                raise ValueError(f"a waveform has shape (samples,), not {wave.shape}")
            if not self.codes(len(wave)):
                raise ValueError(f"a waveform of {len(wave)} samples is too short for a code")
        hops = [self.backend.hops(len(wave)) for wave in waves]
        batch = torch.zeros(len(waves), max(hops) * HOP)
        for row, wave in zip(batch, waves, strict=True):
            row[: len(wave)] = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
        return self.backend.latents(batch.to(self.device), hops)

    @torch.inference_mode()
    def quantize(self, latents: Tensor) -> NDArray[np.int64]:
        """(clips, codes, dimensions) to codes (clips, codes)."""
        _, codes = self.backend.quantizer(latents)
        return codes.cpu().numpy().astype(np.int64)

    @torch.inference_mode()
    def levels(self, latents: Tensor) -> Tensor:
        """The same in units of quantization levels: the code is decided by rounding."""
        return self.backend.quantizer.bound(latents.float())

    @torch.inference_mode()
    def decode(self, codes: Sequence[NDArray[np.integer[Any]]]) -> list[Wave]:
        """Codes, each (codes,), to mono float32 waveforms of ``codes * hop_length`` samples."""
        waves = []
        for clip in codes:
            if clip.ndim != 1 or not len(clip):
                raise ValueError(f"codes have shape (codes,), not {clip.shape}")
            if clip.min() < 0 or clip.max() >= self.codebook_size:
                raise ValueError(
                    f"codes lie in [0, {self.codebook_size}), but these in [{clip.min()}, "
                    f"{clip.max()}]: they are of another codec, or were not mapped from tokens"
                )
            tensor = torch.from_numpy(clip.astype(np.int64))
            waves.append(self.decode_batch(tensor.unsqueeze(0))[0].numpy())
        return waves

    @torch.inference_mode()
    def decode_batch(self, codes: Tensor) -> Tensor:
        """Codes of clips of one length (clips, codes) to waveforms (clips, samples). A decoder
        normalizes over the whole clip, so there is no padding that it would not hear."""
        frames = self.backend.dequantized(codes.to(self.device))
        decode = self.backend.waves if self.decoder is None else self.decoder.waves
        return decode(frames).cpu()
