"""Tokenizers and their speech vocabulary: control tokens, speech tokens, and lookup arrays.

A tokenizer is loaded from the hub or a folder (:func:`load_tokenizer`), or is a byte-level one
without a download (:func:`byte_tokenizer`). :func:`extend_tokenizer` adds the speech vocabulary.

Published models have two orders of speech ids. The reference trainer adds its tokens in
``sorted()`` order, so its speech ids are lexicographic (s_0, s_1, s_10, s_100, …); the ids of LLaSA
are numeric. Do not assume ``id = base + code``: use :attr:`SpeechVocabulary.code_to_id`.

A vocabulary may read phonemes instead of characters, and have a lexicon. Then the keys
:data:`PHONEMES` (the language) and :data:`LEXICON` (pronunciations by word) are in
``tokenizer_config.json``, so a saved model is always read as it was trained.

So does the key :data:`FRAME` with the frames of a codec with several codebooks, unless the format
implies them.

For the Llama-3 tokenizer: 128,256 + 8 control + 65,536 speech = 193,800 tokens, padded with
``<|extra_token_i|>`` to 193,856, a multiple of 64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tts_assets.codec.shard_files import Frame
from tts_assets.core.config import digest_of
from tts_assets.core.hub import MAIN, from_hub, locate
from tts_assets.normalization.rules import Pronunciation
from tts_assets.speechlm.config import PHONEMES, VocabularyConfig
from tts_assets.speechlm.formats import FORMATS, INWORLD, SpeechFormat, recognize

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
# Of the prompts of the format inworld: one token each in a byte tokenizer.
FIXED_STRINGS = (
    "Convert the text to speech:",
    "Given the following voice description ",
    " convert the text to speech:",
)
SIZE_MULTIPLE = 64  # of embedding rows: multiples of 64 fit the tile sizes of GPUs
VOCABULARY_FILE = "vocabulary.json"
# Further keys of tokenizer_config.json.
LEXICON, FRAME = "text_lexicon", "speech_frame"
# Letters and marks that espeak-ng writes and that ASCII lacks: one token each in a byte tokenizer.
IPA_SYMBOLS = (*map(chr, range(0x250, 0x2B0)), *"æçðøħŋœβθχᵻⱱᵊʰʲʷˈˌːˑ˞\u0303\u0329\u032a\u032f")
PAD = "<|pad|>"
ANY_LENGTH = 1 << 30  # the length limit of a byte tokenizer without a model


class VocabularyError(ValueError):
    """A tokenizer lacks speech tokens, or it belongs to another codec or checkpoint."""


@dataclass(frozen=True)
class SpeechVocabulary:
    """The speech ids of a tokenizer. Codes are mapped to ids without strings.

    ``size`` is the number of ids. ``control`` are the ids of the control tokens by name,
    ``speech_ids`` the id of each code. ``frame`` is that of the codec. ``lexicon`` is the digest of
    the lexicon; empty without one.
    """

    format: SpeechFormat
    codebook_size: int
    frame: Frame
    size: int
    control: dict[str, int]
    speech_ids: tuple[int, ...]
    lexicon: str = ""

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
        """The id of the token that starts speech."""
        return self.control[self.format.start]

    @property
    def speech_end(self) -> int:
        """The id of the token that ends speech."""
        return self.control[self.format.end]

    @cached_property
    def digest(self) -> str:
        """A digest that changes whenever a code or control token gets another id, or a word
        another pronunciation."""
        known: dict[str, Any] = {"size": self.size, "control": self.control}
        known["speech"] = list(self.speech_ids)
        # Digests are older than frames, formats and lexica.
        known |= {"frame": list(self.frame.sizes)} if len(self.frame) > 1 else {}
        known |= {} if self.format is INWORLD else {"format": self.format.name}
        return digest_of(known | ({"lexicon": self.lexicon} if self.lexicon else {}))

    def ids(self, codes: ArrayLike) -> NDArray[np.int64]:
        """Token ids of ``codes``, an integer array of any shape.

        Raises :class:`VocabularyError` if a code is outside the codebook.
        """
        array = np.asarray(codes)
        try:
            return self.code_to_id[array]
        except IndexError:
            raise VocabularyError(
                f"code {int(array.max())} is outside the codebook of {self.codebook_size}: "
                "the arrays were made with another codec"
            ) from None

    def codes(self, token_ids: ArrayLike) -> NDArray[np.int64]:
        """Codes (n,) of the speech tokens in ``token_ids`` (m,), in order; others are dropped."""
        found = self.id_to_code[np.asarray(token_ids, dtype=np.int64)]
        return found[found >= 0]

    def whole_codes(self, token_ids: ArrayLike) -> NDArray[np.int64]:
        """:meth:`codes` up to the first frame that is broken, or that ``token_ids`` cut off."""
        return self.frame.whole(self.codes(token_ids))

    def save(self, folder: Path) -> None:
        """Write ``vocabulary.json``, which is compared when a checkpoint is loaded."""
        order = "numeric" if bool((np.diff(self.code_to_id) > 0).all()) else "lexicographic"
        record = {
            "digest": self.digest,
            "format": self.format.name,
            "size": self.size,
            "codebook_size": self.codebook_size,
            "frame": list(self.frame.sizes),
            "order": order,
            "control": self.control,
            "first_speech_id": int(self.code_to_id.min()),
            "lexicon": self.lexicon,
        }
        (folder / VOCABULARY_FILE).write_text(json.dumps(record, indent=2) + "\n")

    def check(self, folder: Path) -> None:
        """Raise :class:`VocabularyError` if ``vocabulary.json`` describes another vocabulary."""
        recorded = json.loads((folder / VOCABULARY_FILE).read_text())["digest"]
        if recorded != self.digest:
            raise VocabularyError(
                f"{folder}: its tokenizer gives vocabulary {self.digest[:12]}, but "
                f"{VOCABULARY_FILE} records {recorded[:12]}; the folder's files do not belong "
                "together: export the checkpoint again"
            )


def added_tokens(codebook_size: int, config: VocabularyConfig) -> list[str]:
    """The names of the added tokens in the order of their ids."""
    form = FORMATS[config.format or "inworld"]
    tokens = list(form.control)
    tokens += NONVERBALS if config.nonverbals else ()
    tokens += [form.code_token(code) for code in range(codebook_size)]
    return sorted(tokens) if config.order == "lexicographic" else tokens


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    codebook_size: int,
    config: VocabularyConfig,
    frame: tuple[int, ...] = (),
) -> SpeechVocabulary:
    """Append the speech vocabulary to ``tokenizer`` in place, unless it has one already.

    ``frame`` are the codes at each position of a frame of the codec, empty if it has one codebook.
    Raises :class:`VocabularyError` if ``config`` asks for another format or other phonemes, if the
    format is for another codec, or if the ids of the tokenizer have holes, in which new tokens
    would take the ids of others.
    """
    form = recognize(tokenizer.get_vocab())
    if form is None:
        check_format(FORMATS[config.format or "inworld"], tokenizer, frame)
        if frame:
            tokenizer.init_kwargs[FRAME] = list(frame)
        _add(tokenizer, added_tokens(codebook_size, config))
        missing = -len(tokenizer) % SIZE_MULTIPLE
        _add(tokenizer, [f"<|extra_token_{i}|>" for i in range(missing)])
        known = tokenizer.get_vocab()
        if len(set(known.values())) < len(known):
            raise VocabularyError(
                f"the ids of {tokenizer.name_or_path or 'the tokenizer'} have holes, so that added "
                "tokens take the ids of others: save it with consecutive ids first"
            )
    elif config.format not in (None, form.name):
        raise VocabularyError(
            f"vocabulary.format is {config.format!r}, but the base was trained with the format "
            f"{form.name!r}: remove the key"
        )
    if config.phonemes:
        _declare_phonemes(tokenizer, config.phonemes, form)
    vocabulary = read_vocabulary(tokenizer, codebook_size)
    if vocabulary.frame.sizes != (frame or (codebook_size,)):
        raise VocabularyError(
            f"the base writes frames of {vocabulary.frame.sizes} codes, the codec of "
            f"{frame or (codebook_size,)}: it belongs to another codec"
        )
    return vocabulary


def check_format(
    form: SpeechFormat, tokenizer: PreTrainedTokenizerBase, frame: tuple[int, ...]
) -> None:
    """Raise :class:`VocabularyError` if a base or a codec cannot have a format."""
    if form.frame and form.frame != frame:
        raise VocabularyError(
            f"the format {form.name!r} is for a codec with frames of {form.frame} codes (SNAC at "
            f"24 kHz), this codec has {frame or 'one codebook'}: choose another format"
        )
    missing = [token for token in form.requires if token not in tokenizer.get_vocab()]
    if missing:
        raise VocabularyError(
            f"the format {form.name!r} needs the tokens {', '.join(missing)} of Llama 3, which "
            f"{tokenizer.name_or_path or 'the tokenizer'} lacks: choose another format"
        )


def _declare_phonemes(
    tokenizer: PreTrainedTokenizerBase, language: str, form: SpeechFormat | None
) -> None:
    """Raises :class:`VocabularyError` if a trained base reads something else.

    A published model with phonemes may be of any language: its tokenizer does not tell.
    """
    declared = str(tokenizer.init_kwargs.get(PHONEMES, ""))
    if form is not None and declared != language and (declared or not form.phonemes):
        raise VocabularyError(
            f"vocabulary.phonemes is {language!r}, but the base reads "
            f"{'phonemes of ' + declared if declared else 'characters'}: remove the key"
        )
    tokenizer.init_kwargs[PHONEMES] = language


def _add(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    # normalized=False: a lower-casing normalizer must not change them.
    special = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(special, special_tokens=True)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> SpeechVocabulary:
    """The speech vocabulary of a tokenizer that has one, in any order of ids.

    Raises :class:`VocabularyError` if it lacks tokens or belongs to another codec.
    """
    known = tokenizer.get_vocab()
    name = tokenizer.name_or_path or "the tokenizer"
    form = recognize(known)
    if form is None:
        raise VocabularyError(
            f"{name} has the speech tokens of no known format: call extend_tokenizer() first"
        )
    tokens = [form.code_token(code) for code in range(codebook_size)]
    missing = [token for token in tokens if token not in known]
    if missing:
        raise VocabularyError(
            f"{name} lacks {len(missing)} tokens of a codec of {codebook_size} codes, the first is "
            f"{missing[0]}: it belongs to another codec"
        )
    frame = form.frame or tuple(tokenizer.init_kwargs.get(FRAME, ())) or (codebook_size,)
    beyond = sum(frame) != codebook_size if form.frame else form.code_token(codebook_size) in known
    if beyond:
        raise VocabularyError(
            f"{name} has more speech tokens than the codec's {codebook_size} codes: it belongs to "
            "another codec"
        )
    return SpeechVocabulary(
        format=form,
        codebook_size=codebook_size,
        frame=Frame(frame),
        size=max(known.values()) + 1,
        control={token: known[token] for token in form.control},
        speech_ids=tuple(known[token] for token in tokens),
        lexicon=digest_of(lexicon) if (lexicon := lexicon_of(tokenizer)) else "",
    )


def declare_lexicon(
    tokenizer: PreTrainedTokenizerBase, codebook_size: int, lexicon: Mapping[str, str]
) -> SpeechVocabulary:
    """Give ``tokenizer`` the lexicon of the project. An empty one keeps that of a trained base.

    Returns the vocabulary with it. Raises :class:`VocabularyError` for words that have phonemes
    only, if the tokenizer reads characters.
    """
    if lexicon:
        known = {word: Pronunciation.of(word, text) for word, text in lexicon.items()}
        silent = [word for word, one in known.items() if not one.respelling]
        if silent and not phonemes_of(tokenizer):
            raise VocabularyError(
                f"{tokenizer.name_or_path or 'the tokenizer'} reads characters, and {len(silent)} "
                f"words of [text] lexicon have phonemes only, such as {silent[0]!r}: write a "
                f"respelling before the phonemes, such as 'respelling {lexicon[silent[0]]}'"
            )
        tokenizer.init_kwargs[LEXICON] = dict(sorted(lexicon.items()))
    return read_vocabulary(tokenizer, codebook_size)


def lexicon_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The pronunciations that a tokenizer carries, by word; empty without a lexicon."""
    return dict(tokenizer.init_kwargs.get(LEXICON, {}))


def saved_vocabulary(folder: Path) -> SpeechVocabulary:
    """The vocabulary of a folder of ``SpeechLM.save``.

    Raises :class:`VocabularyError` if its files do not belong together.
    """
    size = int(json.loads((folder / VOCABULARY_FILE).read_text())["codebook_size"])
    vocabulary = read_vocabulary(load_tokenizer(str(folder)), size)
    vocabulary.check(folder)
    return vocabulary


def phonemes_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The language whose phonemes a tokenizer reads; empty if it reads characters."""
    form = recognize(tokenizer.get_vocab())
    return str(tokenizer.init_kwargs.get(PHONEMES, form.phonemes if form else ""))


def byte_tokenizer(max_length: int, phonemes: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 byte tokens, with one more token for each fixed string of the prompts.

    It accepts text of any language. A small model that is trained on an hour of speech learns to
    spell faster from 256 frequent tokens than from thousands of rare ones. The instruction is one
    token instead of 27. With ``phonemes``, so is each symbol of the phonetic alphabet, instead of
    two. ``max_length`` is the longest text in tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(text, special=False, normalized=False)
            for text in (*FIXED_STRINGS, *(IPA_SYMBOLS if phonemes else ()))
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """A fast tokenizer by hub name or folder. Its pad token is eos if it has none.

    Raises ValueError for a slow tokenizer.
    """
    tokenizer: PreTrainedTokenizerBase
    name, revision = locate(name_or_path)
    with from_hub(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or MAIN)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{name_or_path}: only fast tokenizers (tokenizer.json) are supported, this is "
            f"{type(tokenizer).__name__}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest that changes whenever a text could get other token ids.

    Padding and truncation are left out, because calls change them.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    known = {k: v for k, v in state.items() if k not in ("padding", "truncation")}
    read = {PHONEMES: phonemes_of(tokenizer), LEXICON: lexicon_of(tokenizer)}
    return digest_of(known | {key: value for key, value in read.items() if value})
