"""Voices for other runtimes: the language model as a GGUF file, the decoder of the codec as ONNX.

The layout of the GGUF file, for llama.cpp, is that of llama.cpp's ``convert_hf_to_gguf.py`` (read
in November 2026): names of tensors from ``gguf.TensorNameMap``; in the architecture ``llama`` the
rows of the query and key matrices are permuted, because llama.cpp rotates neighbouring pairs;
vectors stay float32. ``q8_0`` has blocks of 32 weights with one scale; a matrix whose rows are no
multiple of 32 stays float16.

Speech and control tokens are control tokens of the file. Prompts are best given as token ids
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tts_assets.codec.model import Codec
from tts_assets.core.artifacts import CodecCheckpoint
from tts_assets.core.config import ConfigError
from tts_assets.serving.config import ServingCard
from tts_assets.serving.served_model import open_lm, open_prompts
from tts_assets.speechlm.model import SpeechLM

Quantization = Literal["f16", "q8_0"]
PROMPT_FILE = "prompt_ids.json"
PROMPT_TEXT = "good morning"
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # of transformers; llama.cpp has the same names
PRE_TOKENIZERS = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
BYTES = 256  # tokens of a vocabulary without merges
NO_MERGE = "Ā Ā"  # two zero bytes, in no text: llama.cpp demands a list of merges
DECODER_FILE = "decoder.onnx"
OPSET = 17
LENGTHS = (5, 12)  # codes of the clips that are compared; neither is that of the traced one
TRACED = 8
LARGEST_DIFFERENCE = 1e-4  # of a sample; full scale is 1


def write_gguf(folder: Path, card: ServingCard, target: Path, quantization: Quantization) -> Path:
    """Write ``<recipe>-<quantization>.gguf`` and an example of a prompt to ``target``.

    Returns the path of the model. Raises :class:`ConfigError` for a model that llama.cpp would
    compute as another function.
    """
    import gguf

    lm = open_lm(folder, card, "cpu")
    config = checked(lm)
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{card.recipe}-{quantization}.gguf"
    aside = path.with_suffix(".part")
    writer = gguf.GGUFWriter(aside, config.model_type)
    add_architecture(writer, config, card, quantization)
    add_vocabulary(writer, lm, config)
    for name, tensor, kind in tensors(lm, config, quantization):
        writer.add_tensor(name, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.replace(path)
    prompts = open_prompts(folder, card)
    example = {"text": PROMPT_TEXT, "ids": prompts.inference(PROMPT_TEXT).tolist()}
    example |= {"end": lm.vocabulary.speech_end, "first_code": int(lm.vocabulary.speech_ids[0])}
    (target / PROMPT_FILE).write_text(json.dumps(example, indent=1) + "\n")
    return path


def checked(lm: SpeechLM) -> Any:
    """The configuration of the model. Raises :class:`ConfigError` if GGUF cannot express it."""
    config: Any = lm.model.config
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"the base is a {config.model_type!r}; GGUF is written for {', '.join(ARCHITECTURES)}"
        )
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(
            f"the base scales its rotary positions ({rope['rope_type']}), which is not exported"
        )
    windows = getattr(config, "use_sliding_window", False)
    biases = config.model_type == "llama" and (config.attention_bias or config.mlp_bias)
    if windows or biases:
        raise ConfigError("attention windows and biases of the base are not exported")
    return config


def add_architecture(
    writer: Any, config: Any, card: ServingCard, quantization: Quantization
) -> None:
    """Sizes and constants of the model."""
    import gguf

    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(card.recipe)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    kinds = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(int(kinds[quantization]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_vocabulary(writer: Any, lm: SpeechLM, config: Any) -> None:
    """Tokens with their types, merges, and the end of speech as the end of text."""
    import gguf

    stated = json.loads(lm.tokenizer.backend_tokenizer.to_str())
    if stated["model"]["type"] != "BPE":
        raise ConfigError(f"the tokenizer is {stated['model']['type']}; GGUF is written for BPE")
    known = {index: token for token, index in lm.tokenizer.get_vocab().items()}
    added = {token["id"]: bool(token["special"]) for token in stated["added_tokens"]}
    tokens, types = [], []
    for index in range(config.vocab_size):
        tokens.append(known.get(index, f"[PAD{index}]"))
        if index not in known:
            types.append(gguf.TokenType.UNUSED)
        elif index in added:
            types.append(gguf.TokenType.CONTROL if added[index] else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges_of(stated)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(config.model_type, merges))
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in types])
    writer.add_token_merges(merges or [NO_MERGE])
    writer.add_eos_token_id(lm.vocabulary.speech_end)
    writer.add_pad_token_id(pad_of(lm.tokenizer))
    writer.add_add_bos_token(False)


def merges_of(stated: Any) -> list[Any]:
    """The merges of a ``tokenizer.json``."""
    merges: list[Any] = stated["model"]["merges"]
    return merges


def pre_tokenizer(model_type: str, merges: list[str]) -> str:
    """llama.cpp's name of the rule that splits a text; without merges every rule is the same."""
    return PRE_TOKENIZERS[model_type] if merges else "default"


def pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the padding token."""
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def tensors(
    lm: SpeechLM, config: Any, quantization: Quantization
) -> Iterator[tuple[str, NDArray[Any], Any]]:
    """Name, data and type of every tensor of the file. Tied output matrices are left out."""
    import gguf

    architecture = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in lm.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ConfigError(f"GGUF has no place for the weights {name}")
        data = tensor.detach().cpu().float().numpy()
        part = name.split(".")[-2]
        if config.model_type == "llama" and part in heads:
            data = interleaved(data, heads[part])
        yield found, *stored(data, quantization)


def interleaved(matrix: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key matrix (heads x width, hidden) in llama.cpp's order.

    transformers rotates a feature of the first half of a head with one of the second half, the
    architecture ``llama`` of llama.cpp neighbours.
    """
    half = len(matrix) // heads // 2
    parts = matrix.reshape(heads, 2, half, *matrix.shape[1:])
    return parts.swapaxes(1, 2).reshape(matrix.shape)


def stored(data: NDArray[np.float32], quantization: Quantization) -> tuple[NDArray[Any], Any]:
    """The data as it is stored, and its type."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    if data.ndim == 1:
        return data, kinds.F32
    if quantization == "q8_0" and data.shape[-1] % gguf.GGML_QUANT_SIZES[kinds.Q8_0][0] == 0:
        return gguf.quants.quantize(data, kinds.Q8_0), kinds.Q8_0
    return data.astype(np.float16), kinds.F16


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
