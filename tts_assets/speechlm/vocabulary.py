"""The speech vocabulary of a tokenizer: control tokens, speech tokens, and the lookup arrays.

Both id orders exist in the wild. The reference trainer adds its tokens in ``sorted()`` order, so
that speech ids are lexicographic (s_0, s_1, s_10, s_100, …); LLaSA's are numeric. Nothing here
assumes ``id = base + code``: a code becomes an id through :attr:`SpeechVocabulary.code_to_id`.

For the Llama-3 tokenizer: 128,256 + 8 control + 65,536 speech = 193,800 tokens, padded with
``<|extra_token_i|>`` to 193,856, a multiple of 64.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from tts_assets.core.config import digest_of
from tts_assets.speechlm.config import VocabularyConfig

SPEECH_START, SPEECH_END = "<|speech_start|>", "<|speech_end|>"
TEXT_START, TEXT_END = "<|text_prompt_start|>", "<|text_prompt_end|>"
VOICE_START, VOICE_END = "<|voice_description_start|>", "<|voice_description_end|>"
SOUND_START, SOUND_END = "<|sound_effect_start|>", "<|sound_effect_end|>"
CONTROL_TOKENS = (
    SPEECH_START,
    SPEECH_END,
    TEXT_START,
    TEXT_END,
    VOICE_START,
    VOICE_END,
    SOUND_START,
    SOUND_END,
)
NONVERBALS = (
    "<breathe>",
    "<burp>",
    "<chew>",
    "<clear_throat>",
    "<cough>",
    "<cry>",
    "<gasp>",
    "<grunt>",
    "<hiccup>",
    "<laugh>",
    "<moan>",
    "<pant>",
    "<scream>",
    "<sigh>",
    "<sing>",
    "<slurp>",
    "<sneeze>",
    "<sniff>",
    "<snort>",
    "<whistle>",
    "<yawn>",
)
SIZE_MULTIPLE = 64  # matrices whose rows are a multiple of 64 meet the GPU's tile sizes
VOCABULARY_FILE = "vocabulary.json"


class VocabularyError(ValueError):
    """A tokenizer lacks speech tokens, or does not belong to the codec or the checkpoint."""


@dataclass(frozen=True)
class SpeechVocabulary:
    """Which ids of a tokenizer are speech. Integers only: codes never become strings.

    ``size`` counts all ids, padding included: the number of rows of the embeddings.
    """

    codebook_size: int
    size: int
    control: dict[str, int]
    speech_ids: tuple[int, ...]

    @cached_property
    def code_to_id(self) -> NDArray[np.int64]:
        """Token id of every code, shape (codebook_size,)."""
        return np.asarray(self.speech_ids, dtype=np.int64)

    @cached_property
    def id_to_code(self) -> NDArray[np.int64]:
        """Code of every token id, shape (size,); -1 where the token is not speech."""
        codes = np.full(self.size, -1, dtype=np.int64)
        codes[self.code_to_id] = np.arange(self.codebook_size)
        return codes

    @property
    def speech_start(self) -> int:
        return self.control[SPEECH_START]

    @property
    def speech_end(self) -> int:
        return self.control[SPEECH_END]

    @cached_property
    def digest(self) -> str:
        """Changes whenever a code or a control token would get another id."""
        return digest_of(
            {"size": self.size, "control": self.control, "speech": list(self.speech_ids)}
        )

    def ids(self, codes: ArrayLike) -> NDArray[np.int64]:
        """Token ids of ``codes`` (any integer array); raises if a code is outside the codebook."""
        array = np.asarray(codes)
        try:
            return self.code_to_id[array]
        except IndexError:
            raise VocabularyError(
                f"code {int(array.max())} is outside the codebook of {self.codebook_size}: "
                "the arrays were made with another codec"
            ) from None

    def codes(self, token_ids: ArrayLike) -> NDArray[np.int64]:
        """Codes of the speech tokens among ``token_ids``, in order; other tokens are dropped."""
        found = self.id_to_code[np.asarray(token_ids, dtype=np.int64)]
        return found[found >= 0]

    def save(self, folder: Path) -> None:
        """Write ``vocabulary.json``: what a checkpoint's users compare before they load it."""
        order = "numeric" if bool((np.diff(self.code_to_id) > 0).all()) else "lexicographic"
        record = {
            "digest": self.digest,
            "size": self.size,
            "codebook_size": self.codebook_size,
            "order": order,
            "control": self.control,
            "first_speech_id": int(self.code_to_id.min()),
        }
        (folder / VOCABULARY_FILE).write_text(json.dumps(record, indent=2) + "\n")

    def check(self, folder: Path) -> None:
        """Raise if the ``vocabulary.json`` in ``folder`` describes another vocabulary."""
        recorded = json.loads((folder / VOCABULARY_FILE).read_text())["digest"]
        if recorded != self.digest:
            raise VocabularyError(
                f"{folder}: its tokenizer gives vocabulary {self.digest[:12]}, but "
                f"{VOCABULARY_FILE} records {recorded[:12]}; the folder's files do not belong "
                "together: export the checkpoint again"
            )


def speech_token(code: int) -> str:
    return f"<|s_{code}|>"


def added_tokens(codebook_size: int, config: VocabularyConfig) -> list[str]:
    """New tokens in the order in which they get their ids."""
    tokens = list(CONTROL_TOKENS)
    tokens += NONVERBALS if config.nonverbals else ()
    tokens += [speech_token(code) for code in range(codebook_size)]
    return sorted(tokens) if config.order == "lexicographic" else tokens


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, codebook_size: int, config: VocabularyConfig
) -> SpeechVocabulary:
    """Append the speech vocabulary to ``tokenizer`` in place; one that has it stays as it is."""
    if SPEECH_START not in tokenizer.get_vocab():
        _add(tokenizer, added_tokens(codebook_size, config))
        missing = -len(tokenizer) % SIZE_MULTIPLE
        _add(tokenizer, [f"<|extra_token_{i}|>" for i in range(missing)])
    return read_vocabulary(tokenizer, codebook_size)


def _add(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    # normalized=False: a lower-casing normalizer must not touch them on the way in.
    special = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(special, special_tokens=True)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> SpeechVocabulary:
    """The speech vocabulary of a tokenizer that has one, whatever the order of its ids."""
    known = tokenizer.get_vocab()
    names = [*CONTROL_TOKENS, *(speech_token(code) for code in range(codebook_size))]
    missing = [name for name in names if name not in known]
    if missing:
        raise VocabularyError(
            f"{tokenizer.name_or_path or 'the tokenizer'} lacks {len(missing)} tokens of a codec "
            f"of {codebook_size} codes, the first is {missing[0]}: it belongs to another codec, "
            "or needs extend_tokenizer() first"
        )
    if speech_token(codebook_size) in known:
        raise VocabularyError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has more speech tokens than the "
            f"codec's {codebook_size} codes: it belongs to another codec"
        )
    top = max(known.values()) + 1
    return SpeechVocabulary(
        codebook_size=codebook_size,
        size=top + -top % SIZE_MULTIPLE,
        control={name: known[name] for name in CONTROL_TOKENS},
        speech_ids=tuple(known[speech_token(code)] for code in range(codebook_size)),
    )
