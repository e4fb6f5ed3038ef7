"""Prompt formats of public models: their control tokens, speech tokens and prompts, as data.

A model knows one way of writing a prompt, the one that it was trained with. :func:`recognize` finds
the format of a tokenizer that has speech tokens; ``vocabulary.format`` of a recipe chooses the
format of a base without them. All formats have one stream of codes. A training sample is::

    before  text  after  codes  end  closing

``after`` ends with the token that starts speech, and the loss counts from that token on.

Sources, read in November 2026: the reference trainer's ``prompt.py`` (inworld); HKUSTAudio's
LLaSA_training, ``train_tts.py`` (llasa); neuphonic's neutts-air, ``examples/finetune.py`` (neutts);
canopyai's Orpheus-TTS, ``orpheus_tts_pypi`` and ``finetune`` (orpheus).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import get_args

from transformers import PreTrainedTokenizerBase

from tts_assets.speechlm.config import FormatName

INSTRUCTION = "Convert the text to speech:"
TODAY = date(2024, 7, 26)  # in templates with a date: the ids are the same on every day
TEXT, SPEECH = "\ue000", "\ue001"  # places in a chat template; private use, in no text


@dataclass(frozen=True)
class Pieces:
    """The fixed strings around text and codes. ``described`` are those around a description and
    its text: before the description, and between both; None if the format has no place for it."""

    before: str
    after: str
    closing: str = ""
    described: tuple[str, str] | None = None


@dataclass(frozen=True)
class SpeechFormat:
    """A prompt format.

    ``control`` are the tokens that it adds, in the order of their ids; ``start`` and ``end`` are
    those around codes, ``speech`` is the name of the token of a code. With ``chat``, ``pieces`` are
    the contents of a user turn and an assistant turn in the chat template of the tokenizer, if it
    has one. ``phonemes`` is the language whose phonemes the published models read, if any.
    ``learning_rate`` and ``sampling`` are what the authors use.

    The name of a code's token has ``first`` plus the code. ``frame`` are the codes at each position
    of a frame of the format's codec, if it has several codebooks. ``requires`` are tokens of the
    base in ``pieces``, with which the format writes what a tokenizer puts before a text. With
    ``named``, the place for a description takes a speaker's name: ``tara: text``. ``spelled`` are
    the nonverbal tags that are read letter by letter.
    """

    name: FormatName
    control: tuple[str, ...]
    start: str
    end: str
    speech: str
    pieces: Pieces
    chat: bool = False
    phonemes: str = ""
    learning_rate: float | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    first: int = 0
    frame: tuple[int, ...] = ()
    requires: tuple[str, ...] = ()
    named: bool = False
    spelled: frozenset[str] = frozenset()

    def code_token(self, code: int) -> str:
        """The name of the token of a code."""
        return self.speech.format(self.first + code)

    def advice(self, learning_rate: float) -> str:
        """What the authors use, beside the learning rate of a recipe; empty if it is not known."""
        if self.learning_rate is None:
            return ""
        values = ", ".join(f"{name} {value:g}" for name, value in self.sampling.items())
        return (
            f"the authors of the format {self.name} train with the learning rate "
            f"{self.learning_rate:g} (this recipe: {learning_rate:g}), and sample with {values}"
        )

    def of(self, tokenizer: PreTrainedTokenizerBase) -> Pieces:
        """The strings of a prompt for this tokenizer."""
        if self.chat and tokenizer.chat_template is not None:
            return self._templated(tokenizer)
        return self.pieces

    def writes_prefix(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the strings already have what the tokenizer puts before a text."""
        return bool(self.requires) or (self.chat and tokenizer.chat_template is not None)

    def _templated(self, tokenizer: PreTrainedTokenizerBase) -> Pieces:
        before, after = self.pieces.before, self.pieces.after.removesuffix(self.start)
        turns = [
            {"role": "user", "content": f"{before}{TEXT}{after}"},
            {"role": "assistant", "content": f"{self.start}{SPEECH}{self.end}"},
        ]
        text = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            date_string=TODAY.strftime("%d %b %Y"),
            strftime_now=TODAY.strftime,
        )
        assert isinstance(text, str)
        head, _, rest = text.partition(TEXT)
        middle, _, closing = rest.partition(f"{SPEECH}{self.end}")
        return Pieces(head, middle, closing)


INWORLD = SpeechFormat(
    name="inworld",
    control=(
        "<|speech_start|>",
        "<|speech_end|>",
        "<|text_prompt_start|>",
        "<|text_prompt_end|>",
        "<|voice_description_start|>",
        "<|voice_description_end|>",
        "<|sound_effect_start|>",
        "<|sound_effect_end|>",
    ),
    start="<|speech_start|>",
    end="<|speech_end|>",
    speech="<|s_{}|>",
    pieces=Pieces(
        before=f"{INSTRUCTION}<|text_prompt_start|>",
        after="<|text_prompt_end|>\n<|speech_start|>",
        described=(
            "Given the following voice description <|voice_description_start|>",
            "<|voice_description_end|> convert the text to speech:<|text_prompt_start|>",
        ),
    ),
)
LLASA = SpeechFormat(
    name="llasa",
    control=(
        "<|TEXT_GENERATION_START|>",
        "<|TEXT_GENERATION_END|>",
        "<|TEXT_UNDERSTANDING_START|>",
        "<|TEXT_UNDERSTANDING_END|>",
        "<|SPEECH_GENERATION_START|>",
        "<|SPEECH_GENERATION_END|>",
        "<|SPEECH_UNDERSTANDING_START|>",
        "<|SPEECH_UNDERSTANDING_END|>",
    ),
    start="<|SPEECH_GENERATION_START|>",
    end="<|SPEECH_GENERATION_END|>",
    speech="<|s_{}|>",
    pieces=Pieces(
        before=f"{INSTRUCTION}<|TEXT_UNDERSTANDING_START|>",
        after="<|TEXT_UNDERSTANDING_END|><|SPEECH_GENERATION_START|>",
    ),
    chat=True,
    learning_rate=1e-5,
    sampling={"temperature": 0.8, "top_p": 1.0},
)
NEUTTS = SpeechFormat(
    name="neutts",
    control=(
        "<|TEXT_REPLACE|>",
        "<|TEXT_PROMPT_START|>",
        "<|TEXT_PROMPT_END|>",
        "<|SPEECH_REPLACE|>",
        "<|SPEECH_GENERATION_START|>",
        "<|SPEECH_GENERATION_END|>",
    ),
    start="<|SPEECH_GENERATION_START|>",
    end="<|SPEECH_GENERATION_END|>",
    speech="<|speech_{}|>",
    pieces=Pieces(
        before=f"user: {INSTRUCTION}<|TEXT_PROMPT_START|>",
        after="<|TEXT_PROMPT_END|>\nassistant:<|SPEECH_GENERATION_START|>",
    ),
    phonemes="en",
    learning_rate=4e-5,
    sampling={"temperature": 1.0, "top_k": 50, "min_tokens": 50},
)
ORPHEUS = SpeechFormat(
    name="orpheus",
    control=tuple(f"<custom_token_{number}>" for number in range(10)),
    start="<custom_token_1>",
    end="<custom_token_2>",
    speech="<custom_token_{}>",
    pieces=Pieces(  # 3 and 4 are around the human, 5 and 6 around the AI
        before="<custom_token_3><|begin_of_text|>",
        after="<|eot_id|><custom_token_4><custom_token_5><custom_token_1>",
        closing="<custom_token_6>",
        described=("<custom_token_3><|begin_of_text|>", ""),
    ),
    learning_rate=5e-5,
    sampling={"temperature": 0.6, "top_p": 0.8, "repetition_penalty": 1.3},
    first=10,
    frame=7 * (4096,),  # of SNAC at 24 kHz
    requires=("<|begin_of_text|>", "<|eot_id|>"),
    named=True,
    spelled=frozenset(
        f"<{tag}>"
        for tag in ("laugh", "chuckle", "sigh", "cough", "sniffle", "groan", "yawn", "gasp")
    ),
)
PLAIN = SpeechFormat(  # for a base of any kind: its own chat template around text and speech
    name="plain",
    control=("<|audio_start|>", "<|audio_end|>"),
    start="<|audio_start|>",
    end="<|audio_end|>",
    speech="<|audio_{}|>",
    pieces=Pieces(before=f"{INSTRUCTION} ", after="\n<|audio_start|>"),
    chat=True,
)
FORMATS: dict[FormatName, SpeechFormat] = {
    one.name: one for one in (INWORLD, LLASA, NEUTTS, ORPHEUS, PLAIN)
}
assert set(FORMATS) == set(get_args(FormatName))


def recognize(tokens: Collection[str]) -> SpeechFormat | None:
    """The format of a tokenizer with these tokens; None if it has the speech tokens of none."""
    for one in FORMATS.values():
        if one.code_token(0) in tokens and all(name in tokens for name in one.control):
            return one
    return None
