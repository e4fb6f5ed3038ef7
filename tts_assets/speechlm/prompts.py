"""Training samples and inference prompts as token ids, in the format of a vocabulary.

The formats are in ``formats.py``; a training sample of the format ``inworld`` is::

    Convert the text to speech:<|text_prompt_start|>T<|text_prompt_end|>\\n
    <|speech_start|>codes<|speech_end|>

A description D of the voice includes emotion and style where a sample has these tags
(:func:`describe`). The prompt of inference ends after the token that starts speech. With a voice
prompt, T is its transcript, a space, and the text to synthesize, and the codes of the voice prompt
follow. A vocabulary with phonemes has those of T in its place; descriptions remain characters. The
words of a lexicon are respelled, or have their own phonemes.

The parts are tokenized separately and concatenated as ids. The result equals that of the whole
string, because a tokenizer splits at its added tokens first (``tests/speechlm/test_prompts.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tts_assets.corpora.text import Lexicon, Phonemizer
from tts_assets.speechlm.config import TokenizerConfig
from tts_assets.speechlm.formats import Pieces
from tts_assets.speechlm.vocabulary import (
    ANY_LENGTH,
    IPA_SYMBOLS,
    NONVERBALS,
    SpeechVocabulary,
    byte_tokenizer,
    declare_lexicon,
    extend_tokenizer,
    lexicon_of,
    load_tokenizer,
    phonemes_of,
)

Ids = NDArray[np.int64]
AnyIds = NDArray[np.int64] | NDArray[np.int32]
NAME = re.compile(r"[\w' -]*[^\W_]")  # of a speaker
SENTENCE_ENDS = ".!?。！？"
NO_IDS: Ids = np.empty(0, dtype=np.int64)


class PromptError(ValueError):
    """A prompt that the format does not allow. The message says why."""


def describe(voice_description: str = "", emotion: str = "", style: str = "") -> str:
    """The description D of a sample. A voice description alone is not changed.

    >>> describe("A calm woman", emotion="happy", style="newscast")
    'A calm woman. Emotion: happy. Style: newscast.'
    """
    if not emotion and not style:
        return voice_description
    sentences = [voice_description.strip()]
    if sentences[0] and sentences[0][-1] not in SENTENCE_ENDS:
        sentences[0] += "."
    sentences += [f"Emotion: {emotion}."] if emotion else []
    sentences += [f"Style: {style}."] if style else []
    return " ".join(filter(None, sentences))


class PromptFormat:
    """Builds training samples and inference prompts for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: SpeechVocabulary) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary

    def text_ids(self, text: str) -> Ids:
        """The ids of text to speak: of its characters, or of its phonemes."""
        return self.text_batch([text])[0]

    def text_batch(self, texts: list[str]) -> list[Ids]:
        """:meth:`text_ids` of many texts at once (the Rust tokenizer uses all cores)."""
        return self.literal_batch(self.units(texts))

    def literal_batch(self, texts: list[str]) -> list[Ids]:
        """The ids of texts from outside: names of tokens are letters, but for nonverbal tags.

        A text therefore never becomes control or speech tokens.
        """
        if not texts:
            return []
        tokenizer, ids = self._literal
        return [ids[each.ids] for each in tokenizer.encode_batch(texts, add_special_tokens=False)]

    def plain_ids(self, text: str) -> Ids:
        """The ids of text that is not spoken, without special tokens around it."""
        return self.plain_batch([text])[0]

    def plain_batch(self, texts: list[str]) -> list[Ids]:
        """:meth:`plain_ids` of many texts at once."""
        if not texts:
            return []
        batch = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [np.asarray(ids, dtype=np.int64) for ids in batch]

    def units(self, texts: Sequence[str]) -> list[str]:
        """The characters of each text, or its phonemes between the nonverbal tags.

        The lexicon is applied. A space before a text remains: it joins the text to an earlier one.
        """
        if self._phonemizer is None:
            return self._lexicon.respelled(texts) if self._lexicon else list(texts)
        parts = [self._parts(text) for text in texts]
        written = [part for text in parts for part in text[::2]]
        spoken = iter(zip(written, self._phonemizer.many(written), strict=True))
        found = []
        for text, split in zip(texts, parts, strict=True):
            split[::2] = [_spaced(*next(spoken)) for _ in split[::2]]
            found.append(" " * text.startswith(" ") + " ".join("".join(split).split()))
        return found

    def _parts(self, text: str) -> list[str]:
        """An odd number of parts: every second one stays, a tag or phonemes of the lexicon."""
        split = self._tags.split(text)
        split[::2] = [f" {part} " for part in split[::2]]
        if self._lexicon is None:
            return split
        inside = [
            self._lexicon.split(part) if number % 2 == 0 else [part]
            for number, part in enumerate(split)
        ]
        return [piece for part in inside for piece in part]

    @cached_property
    def _literal(self) -> tuple[Tokenizer, Ids]:
        """The tokenizer without the added tokens that a text must not name, and its ids here.

        Without them, the tokenizer numbers the remaining added tokens anew.
        """
        stated = json.loads(self.tokenizer.backend_tokenizer.to_str())
        kept = {*NONVERBALS, *IPA_SYMBOLS}
        added = [token for token in stated["added_tokens"] if token["content"] in kept]
        changes = {"added_tokens": added, "post_processor": None}
        stated |= changes | {"truncation": None, "padding": None}
        tokenizer = Tokenizer.from_str(json.dumps(stated))
        ids = np.arange(tokenizer.get_vocab_size() + len(self.tokenizer), dtype=np.int64)
        for token in added:
            ids[tokenizer.token_to_id(token["content"])] = token["id"]
        return tokenizer, ids

    @cached_property
    def _phonemizer(self) -> Phonemizer | None:
        language = phonemes_of(self.tokenizer)
        return Phonemizer(language) if language else None

    @cached_property
    def _lexicon(self) -> Lexicon | None:
        entries = lexicon_of(self.tokenizer)
        return Lexicon(entries) if entries else None

    @cached_property
    def _tags(self) -> re.Pattern[str]:
        known = self.tokenizer.get_added_vocab()
        return re.compile(f"({'|'.join(tag for tag in NONVERBALS if tag in known) or '(?!)'})")

    def training(self, text: str, codes: ArrayLike, voice_description: str = "") -> Ids:
        """A whole training sample. Targets begin at the token that starts speech.

        Raises :class:`PromptError` without codes.
        """
        if np.size(codes) == 0:
            raise PromptError(f"no speech codes for the text {text!r}")
        prompt = self._head_of([text], voice_description)
        return np.concatenate([prompt, self.vocabulary.ids(codes), self.after_speech])

    def _head_of(self, texts: list[str], description: str) -> Ids:
        if description and self.vocabulary.format.named:
            texts = [f" {texts[0]}", *texts[1:]]
        said = np.concatenate(self.text_batch(texts))
        return self.head(said, self.description_batch([description])[0])

    def description_batch(self, descriptions: list[str]) -> list[Ids]:
        """The ids of descriptions of a voice, or of speakers' names with the colon after them.

        After a name, a text starts with a space. Raises :class:`PromptError` for a description
        where the format has a name.
        """
        if not self.vocabulary.format.named:
            return self.literal_batch(descriptions)
        other = next((one for one in descriptions if one and not NAME.fullmatch(one)), None)
        if other is not None:
            raise PromptError(
                f"the prompt format {self.vocabulary.format.name!r} has a place for a speaker's "
                f"name, not for {other!r}: write a name such as tara in voice_description, and "
                "remove emotion and style"
            )
        return self.literal_batch([f"{one}:" if one else "" for one in descriptions])

    def inference(
        self,
        text: str,
        *,
        prompt_text: str = "",
        prompt_codes: ArrayLike = (),
        voice_description: str = "",
    ) -> Ids:
        """The prompt that the model continues with speech tokens.

        ``prompt_text`` and ``prompt_codes`` are transcript and codes of a voice prompt. Raises
        :class:`PromptError` if only one of them is given.
        """
        codes = np.asarray(prompt_codes, dtype=np.int64)
        if bool(prompt_text) != bool(codes.size):
            raise PromptError("a voice prompt needs both its transcript and its codes")
        texts = [text]
        if prompt_text:  # as in training, where joined texts are phonemized one by one
            one_by_one = self._phonemizer is not None
            texts = [prompt_text, f" {text}"] if one_by_one else [f"{prompt_text} {text}"]
        prompt = self._head_of(texts, voice_description)
        return np.concatenate([prompt, self.vocabulary.ids(codes)])

    def head(self, text: AnyIds, description: AnyIds = NO_IDS) -> Ids:
        """The ids up to and including the start of speech, for tokenized text and description.

        An empty ``description`` gives the format without one. Raises :class:`PromptError` if the
        format has no place for a description.
        """
        if not len(description):
            return np.concatenate([self._before, text, self.after_text])
        if self._described is None:
            raise PromptError(
                f"the prompt format {self.vocabulary.format.name!r} has no place for a voice "
                "description, emotion or style: remove them from the samples or the request"
            )
        before, between = self._described
        return np.concatenate([before, description, between, text, self.after_text])

    def prompt_string(self, units: str) -> str:
        """The prompt of inference of a text, or of its phonemes, as one string.

        A tokenizer that adds its special tokens gives the ids of :meth:`inference`, unless the
        format writes them itself.
        """
        return f"{self._pieces.before}{units}{self._pieces.after}"

    @property
    def adds_prefix(self) -> bool:
        """Whether a tokenizer adds its special tokens to :meth:`prompt_string`."""
        return not self.vocabulary.format.writes_prefix(self.tokenizer)

    @cached_property
    def _pieces(self) -> Pieces:
        return self.vocabulary.format.of(self.tokenizer)

    @cached_property
    def _before(self) -> Ids:
        return self._first(self._pieces.before)

    @cached_property
    def _described(self) -> tuple[Ids, Ids] | None:
        if self._pieces.described is None:
            return None
        before, between = self._pieces.described
        return self._first(before), self.plain_ids(between)

    def _first(self, text: str) -> Ids:
        ids = self.plain_ids(text)
        return np.concatenate([self.prefix, ids]) if self.adds_prefix else ids

    @cached_property
    def prefix(self) -> Ids:
        """The ids that the tokenizer puts before every text: ``<|begin_of_text|>`` for Llama 3."""
        ids = self.tokenizer("", add_special_tokens=True)["input_ids"]
        return np.asarray([i for i in ids if i != self.tokenizer.eos_token_id], dtype=np.int64)

    @cached_property
    def after_text(self) -> Ids:
        """The ids between the text and the codes; the last one starts speech."""
        return self.plain_ids(self._pieces.after)

    @cached_property
    def after_speech(self) -> Ids:
        """The ids behind the codes of a training sample; the first one ends speech."""
        closing = self.plain_ids(self._pieces.closing)
        return np.concatenate([[self.vocabulary.speech_end], closing])


def open_tokenizer(
    config: TokenizerConfig, codebook_size: int, frame: tuple[int, ...] = ()
) -> PromptFormat:
    """The prompt format of a tokenizer with the speech vocabulary of a codec.

    ``frame``: see :func:`extend_tokenizer`.
    """
    vocabulary = config.vocabulary
    tokenizer = (
        byte_tokenizer(ANY_LENGTH, vocabulary.phonemes is not None)
        if config.hub is None
        else load_tokenizer(config.hub)
    )
    extend_tokenizer(tokenizer, codebook_size, vocabulary, frame)
    return PromptFormat(tokenizer, declare_lexicon(tokenizer, codebook_size, config.lexicon))


def _spaced(written: str, spoken: str) -> str:
    """The phonemes of a part, with a space where the part begins or ends with one."""
    return f"{' ' * written[:1].isspace()}{spoken}{' ' * written[-1:].isspace()}"
