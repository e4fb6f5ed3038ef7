"""Configuration of speech language models: base, vocabulary, token arrays, and sampling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from tts_assets.core.config import Config
from tts_assets.core.hub import identity, pinned
from tts_assets.core.program import ProgramConfig
from tts_assets.corpora.config import Language

ADAPTER, ADAPTER_CARD = "adapter", "base.json"  # folder of a published adapter, its card
TOKENS_VERSION = "2"  # of token_arrays
PHONEMES = "text_phonemes"  # in tokenizer_config.json: the language of the phonemes that it reads
FormatName = Literal["inworld", "llasa", "neutts", "orpheus", "plain"]


class LlamaSize(Config):
    """A Llama trained from scratch, with the byte-level tokenizer of ``speechlm/vocabulary.py``.

    ``max_positions`` limits prompt plus speech, in tokens.
    """

    removed_keys: ClassVar[Mapping[str, Any]] = {"rope_theta": 1000.0}

    hidden_size: int = Field(256, gt=0)
    intermediate_size: int = Field(512, gt=0)
    layers: int = Field(6, gt=0)
    heads: int = Field(4, gt=0)
    kv_heads: int = Field(4, gt=0)
    max_positions: int = Field(2048, gt=0)
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of 2 x heads ({self.heads}): "
                "rotary embeddings need an even number of features a head"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        return self


class BaseModel(Config):
    """The model that a recipe starts from. Give exactly one of the three.

    ``llama`` is a size for training from scratch. ``hub`` is a Hugging Face name, or the path of
    such a folder, relative to the project file. ``recipe`` is another SFT recipe, whose checkpoint
    is trained further.
    """

    llama: LlamaSize | None = None
    hub: str | None = None
    recipe: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("llama", "hub", "recipe") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of llama, hub, recipe; got {', '.join(given) or 'none'}"
            )
        return self


class VocabularyConfig(Config):
    """How speech tokens are added to a tokenizer that has none.

    A base with speech tokens keeps them and its prompt format (``speechlm/formats.py``).
    ``lexicographic`` is the order of the reference trainer (s_0, s_1, s_10, s_100, …), ``numeric``
    that of LLaSA. ``nonverbals`` also adds the 21 tags such as ``<laugh>``. With ``phonemes``, a
    language such as "en", the model reads phonemes of espeak-ng instead of characters.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"format", "phonemes"})

    format: FormatName | None = Field(
        None, description="the prompt format of a base without speech tokens; unset: inworld"
    )
    order: Literal["numeric", "lexicographic"] = "numeric"
    nonverbals: bool = False
    phonemes: Language | None = None


class TokenizerConfig(Config):
    """A tokenizer with its speech tokens. ``hub`` None is the byte-level tokenizer.

    ``lexicon`` is that of ``[text]``.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset({"lexicon"})

    hub: str | None
    vocabulary: VocabularyConfig
    lexicon: dict[str, str] = Field(default_factory=dict)


def phonemes_of_base(base: BaseModel, vocabulary: VocabularyConfig) -> str:
    """The language whose phonemes a base reads, such as "en"; empty: it reads characters.

    A name on the hub is not looked up, and gives what ``vocabulary`` says.
    """
    declared = Path(base.hub or "") / "tokenizer_config.json"
    if vocabulary.phonemes or base.hub is None or not declared.is_file():
        return vocabulary.phonemes or ""
    return str(json.loads(declared.read_text(encoding="utf-8")).get(PHONEMES, ""))


Hub = TypeVar("Hub", BaseModel, TokenizerConfig)


def identified(config: Hub) -> Hub:
    """``config`` for a fingerprint: a folder in ``hub`` becomes the digest of its files."""
    return config if config.hub is None else config.model_copy(update={"hub": identity(config.hub)})


def with_commit(config: Hub) -> Hub:
    """``config`` for a program: a name in ``hub`` gets the commit that :func:`identified` gives."""
    return config if config.hub is None else config.model_copy(update={"hub": pinned(config.hub)})


class TokenProgram(ProgramConfig):
    """``tts_assets.speechlm.tokens``: makes the token arrays of ``code_arrays``.

    ``arrays`` is the folder of the artifact. ``pretraining`` adds the streams of pretraining.
    """

    arrays: Path
    tokenizers: tuple[TokenizerConfig, ...]
    pretraining: bool = False


class SamplingConfig(Config):
    """How speech tokens are sampled. ``top_k`` 0 and ``top_p`` 1 switch these filters off.

    ``min_tokens`` and ``max_tokens`` count speech tokens without ``<|speech_end|>``.
    ``temperature`` 0 is greedy decoding. ``repetition_penalty`` includes the tokens of the prompt.
    ``frequency_penalty`` is subtracted once for each earlier occurrence of a token.
    """

    temperature: float = Field(0.8, ge=0)
    top_k: int = Field(50, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.1, gt=0)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    min_tokens: int = Field(10, ge=0)
    max_tokens: int = Field(1792, gt=0)
    seed: int = Field(42, ge=0, lt=2**63)  # vLLM takes signed 64-bit seeds

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


class AdapterCard(Config):
    """``base.json`` of a published adapter: what it was trained beside.

    ``base`` is the digest of the base's weights, ``vocabulary`` that of its vocabulary.
    """

    base: str
    vocabulary: str
