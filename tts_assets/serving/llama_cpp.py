"""llama.cpp, an engine for CPUs: the language model as a GGUF file, and speech tokens from it.

The layout of the GGUF file is that of llama.cpp's ``convert_hf_to_gguf.py`` (read in November
2026): names of tensors from ``gguf.TensorNameMap``; in the architecture ``llama`` the rows of the
query and key matrices are permuted, because llama.cpp rotates neighbouring pairs; vectors stay
float32. ``q8_0`` has blocks of 32 weights with one scale; a matrix whose rows are no multiple of 32
stays float16. Speech and control tokens are control tokens of the file.

llama.cpp computes the logits. Prompts are the token ids of ``speechlm/prompts.py``, and tokens are
drawn by ``speechlm/generate.py``: the same seed gives the same tokens as with transformers, up to
the rounding of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from tts_assets.core.artifacts import atomic_write
from tts_assets.core.cache import user_cache
from tts_assets.core.config import ConfigError
from tts_assets.core.hub import model_digest
from tts_assets.serving.config import Quantization, ServingCard
from tts_assets.serving.served_model import SynthesisError, open_lm
from tts_assets.speechlm.config import SamplingConfig
from tts_assets.speechlm.generate import AllowedTokens, Completion, Draws, Request
from tts_assets.speechlm.model import SpeechLM
from tts_assets.speechlm.vocabulary import SpeechVocabulary

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # of transformers; llama.cpp has the same names
PRE_TOKENIZERS = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
NO_MERGE = "Ā Ā"  # two zero bytes, in no text: llama.cpp demands a list of merges
CONTEXT = 8192  # tokens; its keys and values are allocated at the start, 270 MB for a 1B model


class LlamaCppEngine:
    """A serving model in llama.cpp, in this process. Requests are completed one after another."""

    def __init__(
        self,
        folder: Path,
        card: ServingCard,
        vocabulary: SpeechVocabulary,
        weights: Quantization,
        max_model_len: int | None = None,
    ) -> None:
        """Open the serving model in ``folder``.

        ``max_model_len``: see :func:`context_of`. Raises :class:`SynthesisError` without the
        package ``llama-cpp-python``, and :class:`ConfigError` as :func:`write_model` does.
        """
        try:
            from llama_cpp import Llama, llama_get_logits_ith
        except ImportError as error:
            raise SynthesisError(
                f"llama.cpp is not installed ({error}): pip install 'tts-assets[llama]'"
            ) from error
        threads = torch.get_num_threads()
        self.positions = context_of(folder, max_model_len)
        self.space = AllowedTokens(vocabulary, torch.device("cpu"))
        self._logits_of = llama_get_logits_ith
        self._llama = Llama(
            str(cached_model(folder, card, weights)),
            n_ctx=self.positions,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def complete(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Complete all requests; results in the order of ``requests``."""
        completions = []
        for request in requests:
            draws = Draws(self.space, [request], sampling)
            for _ in self._steps(request, draws):
                pass
            completions += draws.completions()
            if progress is not None:
                progress(1)
        return completions

    def stream(self, request: Request, sampling: SamplingConfig) -> Generator[int]:
        """Yield the token ids of one completion as they are sampled; one stream at a time."""
        yield from self._steps(request, Draws(self.space, [request], sampling))

    def _steps(self, request: Request, draws: Draws) -> Generator[int]:
        """Draw the tokens of one request; yields their ids."""
        drawable = [self.space.ids[columns] for columns in draws.columns]
        self._llama.reset()
        inputs = request.prompt.tolist()
        for step in range(draws.sampling.max_tokens):
            self._llama.eval(inputs)
            logits = self._logits()[drawable[step % len(drawable)]]
            token = int(self.space.ids[draws.draw(logits[None], step)[0]])
            yield token
            if draws.done.all():
                return
            inputs = [token]

    def _logits(self) -> Tensor:
        """The logits after the last token, (V,): a view that the next call overwrites."""
        pointer = self._logits_of(self._llama.ctx, -1)
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (self._llama.n_vocab(),)))


def context_of(folder: Path, max_model_len: int | None) -> int:
    """Tokens of the context: ``max_model_len`` or ``CONTEXT``, at most what the model has."""
    positions = int(AutoConfig.from_pretrained(folder).max_position_embeddings)
    return min(positions, max_model_len or CONTEXT)


def cached_model(folder: Path, card: ServingCard, quantization: Quantization) -> Path:
    """The GGUF file of the serving model in ``folder``, written to the user's cache at first."""
    name = f"{card.recipe}-{model_digest(folder)[:16]}-{quantization}.gguf"
    path = user_cache() / "gguf" / name
    if not path.is_file():
        with atomic_write(path) as aside:
            write_model(open_lm(folder, card, "cpu"), card.recipe, aside, quantization)
    return path


def write_model(lm: SpeechLM, name: str, path: Path, quantization: Quantization) -> None:
    """Write the GGUF file of ``lm``, which has ``name`` in it.

    Raises :class:`ConfigError` for a model that llama.cpp would compute as another function, and
    without the package ``gguf``.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "the package gguf is not installed: pip install 'tts-assets[export]'"
        ) from error
    config = checked(lm)
    writer = gguf.GGUFWriter(path, config.model_type)
    add_architecture(writer, config, name, quantization)
    add_vocabulary(writer, lm, config)
    for tensor_name, tensor, kind in tensors(lm, config, quantization):
        writer.add_tensor(tensor_name, tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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


def add_architecture(writer: Any, config: Any, name: str, quantization: Quantization) -> None:
    """Sizes and constants of the model."""
    import gguf

    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(name)
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
