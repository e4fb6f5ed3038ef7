"""Configuration and reader of texts.

A text file has one JSON object a line, in one of three forms. Other keys are ignored:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}      the same as one question and its answer
    {"text": "…"}

Of a line with several forms, the first one is read. Roles are system (first message only), user and
assistant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    SetAside,
    ValidationSplit,
    is_validation,
    raise_nothing_usable,
    write_set_aside,
)
from tts_assets.core.config import Config, digest_of
from tts_assets.corpora.readers.files import json_object, lines


class TextSource(Config):
    """``[texts.<name>]``: a JSON Lines file (or ``.jsonl.gz``) as in ``speechlm/texts.py``."""

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
