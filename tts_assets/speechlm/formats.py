"""Prompt formats of public models, as data, and the format of files of texts.

A model knows one way of writing a prompt, the one that it was trained with: control tokens, speech
tokens and prompts. :func:`recognize` finds the format of a tokenizer that has speech tokens;
``vocabulary.format`` of a recipe chooses the format of a base without them. All formats have one
stream of codes. A training sample is::

    before  text  after  codes  end  closing

``after`` ends with the token that starts speech, and the loss counts from that token on.

Sources, read in November 2026: the reference trainer's ``prompt.py`` (inworld); HKUSTAudio's
LLaSA_training, ``train_tts.py`` (llasa); neuphonic's neutts-air, ``examples/finetune.py`` (neutts);
canopyai's Orpheus-TTS, ``orpheus_tts_pypi`` and ``finetune`` (orpheus).

A text file has one JSON object a line, in one of three forms. Other keys are ignored:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}      the same as one question and its answer
    {"text": "…"}

Of a line with several forms, the first one is read. Roles are system (first message only), user and
assistant.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tts_assets.arrays.arrays import SPLITS, count_lines
from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    SetAside,
    ValidationSplit,
    is_validation,
    raise_nothing_usable,
    write_set_aside,
)
from tts_assets.core.artifacts import ArtifactStore, Texts
from tts_assets.core.config import Config, digest_of
from tts_assets.core.metadata import CheckResult, Metadata, set_aside_reasons
from tts_assets.corpora.readers.files import json_object, lines
from tts_assets.speechlm.config import FormatName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


class TextSource(Config):
    """``[texts.<name>]``: a JSON Lines file (or ``.jsonl.gz``) as in ``speechlm/formats.py``."""

    path: Path
    licence: str = "unknown"


ID_DIGITS = 16  # of the digest of a text
ROLES = ("system", "user", "assistant")


class BadText(ValueError):
    """A line that cannot be trained on. ``reason`` is a category, ``detail`` describes the line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def write_texts(path: Path, validation: ValidationSplit, folder: Path) -> dict[str, int]:
    """Write the lines of a file as ``{train,val}_samples.jsonl`` and ``set_aside.jsonl``.

    The id of a line is the digest of its content, and its split follows from the id. Returns the
    counts. Only lines that are set aside are kept in memory.
    """
    counts = {"lines": 0, "train_samples": 0, "val_samples": 0}
    aside: list[SetAside] = []
    with (
        (folder / "train_samples.jsonl").open("w", encoding="utf-8") as train,
        (folder / "val_samples.jsonl").open("w", encoding="utf-8") as val,
    ):
        for sample in read_texts(path):
            counts["lines"] += 1
            if isinstance(sample, SetAside):
                aside.append(sample)
                continue
            held = is_validation(sample["id"], validation)
            counts["val_samples" if held else "train_samples"] += 1
            (val if held else train).write(json.dumps(sample, ensure_ascii=False) + "\n")
    if not counts["train_samples"]:
        kept = counts["val_samples"]
        what = f"{path} has no text to train on: {counts['lines']} lines, {kept} for validation"
        raise_nothing_usable(what, aside)
    write_set_aside(folder / SET_ASIDE_FILE, aside)
    return counts | {"set_aside": len(aside)}


def read_texts(path: Path) -> Iterator[dict[str, Any] | SetAside]:
    """Samples with ``id`` and either ``messages`` or ``text``, or records of bad lines.

    Blank lines are skipped.
    """
    for number, line in lines(path):
        where = f"{path.name}:{number}"
        values = json_object(line, where)
        if isinstance(values, SetAside):
            yield values
            continue
        try:
            sample = parse_text(values)
        except BadText as bad:
            yield SetAside(where, bad.reason, bad.detail)
            continue
        yield {"id": digest_of(sample)[:ID_DIGITS], **sample}


def parse_text(values: dict[str, Any]) -> dict[str, Any]:
    """The ``{"messages": …}`` or ``{"text": …}`` of a line. Raises :class:`BadText`."""
    if values.get("messages") is not None:
        return {"messages": parse_messages(values["messages"])}
    if values.get("prompt") is not None and values.get("completion") is not None:
        turns = (("user", values["prompt"]), ("assistant", values["completion"]))
        return {"messages": [{"role": role, "content": words(text)} for role, text in turns]}
    if values.get("text") is not None:
        return {"text": words(values["text"])}
    raise BadText(
        "no text", f"needs messages, prompt and completion, or text; has {', '.join(values)}"
    )


def parse_messages(messages: Any) -> list[dict[str, str]]:
    """A conversation in which the assistant answers. Raises :class:`BadText` for any other."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise BadText("not a list of messages", 'write [{"role": …, "content": …}, …]')
    for number, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            raise BadText("unknown role", f"{role!r}; known: {', '.join(ROLES)}")
        if role == "system" and number:
            raise BadText("system message inside", "it can only be the first")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise BadText("no answer", "there is no message of the assistant to learn")
    if roles.index("assistant") == roles.count("system"):
        raise BadText("no question", "the assistant speaks first; begin with a user's message")
    return [{"role": m["role"], "content": words(m.get("content"))} for m in messages]


def words(text: Any) -> str:
    """``text`` if it is a string that is not blank and can be encoded. Raises :class:`BadText`."""
    if not isinstance(text, str):
        raise BadText("a text that is no string", f"it is a {type(text).__name__}")
    if not text.strip():
        raise BadText("an empty text", "leave the line or the message out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadText("text is not Unicode", str(error)) from None
    return text


def describe_texts(texts: Texts) -> Metadata:
    """Metadata: the number of lines that were set aside for each reason."""
    return {f"set_aside/{name}": count for name, count in set_aside_reasons(texts.path).items()}


def count_all_lines(_: ArtifactStore, texts: Texts) -> CheckResult:
    """Compares the lines of the file with the lines kept and set aside."""
    kept = sum(count_lines(texts.path / f"{split}_samples.jsonl") for split in SPLITS)
    counts = {"lines": texts.facts.lines, "kept": kept}
    counts["set_aside"] = count_lines(texts.path / SET_ASIDE_FILE)
    return CheckResult(counts["lines"] == kept + counts["set_aside"] and kept > 0, counts)
