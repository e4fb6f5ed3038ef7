"""Voices for other runtimes: the language model as a GGUF file, the decoder of the codec as ONNX.

``serving/llama_cpp.py`` has the layout of the GGUF file. Prompts are best given as token ids
(``prompt_ids.json`` beside the file has an example): the tokenizer of llama.cpp does not know the
phonemes, the lexicon and the text normalization of a serving model.

The decoder as ONNX maps codes (1, codes) to a waveform (1, samples), on any runtime. ONNX has no
inverse Fourier transform of complex numbers. The head of the decoder is replaced by one transposed
convolution: its filters are the waves of the inverse transform, times the window, and its stride is
the hop, so that it transforms and adds the overlapping frames at once. The result differs by
rounding only; :func:`write_decoder` compares both before it returns.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tts_assets.codec.model import Codec
from tts_assets.core.artifacts import CodecCheckpoint, atomic_write
from tts_assets.core.config import ConfigError
from tts_assets.serving.config import Quantization, ServingCard
from tts_assets.serving.llama_cpp import write_model
from tts_assets.serving.served_model import open_lm, open_prompts

PROMPT_FILE = "prompt_ids.json"
PROMPT_TEXT = "good morning"
DECODER_FILE = "decoder.onnx"
OPSET = 17
LENGTHS = (5, 12)  # codes of the clips that are compared; neither is that of the traced one
TRACED = 8
LARGEST_DIFFERENCE = 1e-4  # of a sample; full scale is 1


def write_gguf(folder: Path, card: ServingCard, target: Path, quantization: Quantization) -> Path:
    """Write ``<recipe>-<quantization>.gguf`` and an example of a prompt to ``target``.

    Returns the path of the model. Raises :class:`ConfigError` as :func:`write_model` does.
    """
    lm = open_lm(folder, card, "cpu")
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{card.recipe}-{quantization}.gguf"
    with atomic_write(path) as aside:
        write_model(lm, card.recipe, aside, quantization)
    prompts = open_prompts(folder, card)
    example = {"text": PROMPT_TEXT, "ids": prompts.inference(PROMPT_TEXT).tolist()}
    example |= {"end": lm.vocabulary.speech_end, "first_code": int(lm.vocabulary.speech_ids[0])}
    (target / PROMPT_FILE).write_text(json.dumps(example, indent=1) + "\n")
    return path


class ConvolutionHead(nn.Module):
    """The head of X-Codec-2 and NeuCodec in operators of ONNX: frames to a waveform."""

    filters: Tensor
    envelope: Tensor

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.linear, self.hop, self.padding = head.linear, head.hop_length, head.padding
        self.register_buffer("filters", inverse_transform(head.n_fft, head.window).unsqueeze(1))
        self.register_buffer("envelope", head.window.square()[None, None])

    def forward(self, frames: Tensor) -> Tensor:
        """(1, frames, hidden) to (1, 1, samples)."""
        magnitude, phase = self.linear(frames).chunk(2, dim=-1)
        magnitude = magnitude.exp().clamp(max=1e2)
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=-1)
        columns = spectrum.transpose(1, 2)
        wave = F.conv_transpose1d(columns, self.filters, stride=self.hop)
        ones = torch.ones_like(columns[:, :1])
        envelope = F.conv_transpose1d(ones, self.envelope, stride=self.hop)
        inside = slice(self.padding, -self.padding)
        return wave[..., inside] / envelope[..., inside].clamp(min=1e-11)


def inverse_transform(size: int, window: Tensor) -> Tensor:
    """The windowed waves of an inverse real Fourier transform, (size + 2, size).

    The rows are those of the real parts, then those of the imaginary parts. Parts other than the
    first and the last count twice, for their mirror images.
    """
    rows = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None]
    angles = 2 * math.pi / size * rows * torch.arange(size, dtype=torch.float64)
    twice = torch.full_like(rows, 2.0)
    twice[0] = twice[-1] = 1.0
    waves = torch.cat([twice * angles.cos(), -twice * angles.sin()]) / size
    return (waves * window.double()).float()


class Decoder(nn.Module):
    """Codes (1, codes) to a waveform (1, samples)."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.backend: Any = codec.backend
        self.model = self.backend.model
        decoder = self.model.acoustic_decoder
        decoder.head = ConvolutionHead(decoder.head)

    def forward(self, codes: Tensor) -> Tensor:
        """See the class."""
        wave: Tensor = self.backend.waves(self.backend.dequantized(codes))
        return wave


def write_decoder(folder: Path, card: ServingCard, target: Path) -> Path:
    """Write ``decoder.onnx`` of a serving model to ``target``; returns its path.

    Raises :class:`ConfigError` for a model with a separate decoder, for a codec with several
    codebooks, and if the waveforms differ from those of the codec.
    """
    handle = CodecCheckpoint.open((folder / card.codec_path).resolve())
    if card.decoder_path is not None or handle.facts.frame:
        raise ConfigError(
            f"{card.recipe}: separate decoders and codecs with several codebooks are not exported"
        )
    drawn = np.random.default_rng(0)
    clips = [drawn.integers(0, card.codebook_size, length) for length in LENGTHS]
    codec = Codec.load(handle.path)
    expected = codec.decode(clips)
    target.mkdir(parents=True, exist_ok=True)
    path = target / DECODER_FILE
    traced = torch.arange(TRACED, dtype=torch.long)[None]
    torch.onnx.export(
        Decoder(codec).eval(),
        (traced,),
        path,
        input_names=["codes"],
        output_names=["wave"],
        dynamic_axes={"codes": {1: "codes"}, "wave": {1: "samples"}},
        opset_version=OPSET,
        dynamo=False,  # the other exporter needs onnxscript
    )
    difference = max(
        float(np.abs(decoded(path, clip) - wave).max())
        for clip, wave in zip(clips, expected, strict=True)
    )
    if not difference < LARGEST_DIFFERENCE:
        path.unlink()
        raise ConfigError(f"{path.name} differs from the codec by {difference:.1e}: not exported")
    return path


def decoded(path: Path, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The waveform (samples,) of codes (codes,) by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [wave] = session.run(None, {"codes": codes[None].astype(np.int64)})
    return np.asarray(wave[0])
