#!/usr/bin/env python3
"""Write docs/configuration.md from the model of the project file.

    python scripts/make_configuration_reference.py

Every table with its keys, types, defaults and help texts, as tts_assets/settings.py checks them.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tts_assets.settings import Settings

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration reference

Made from the code by `python scripts/make_configuration_reference.py`; do not edit.

`dagster_project.toml` holds these tables. `[profiles.<name>]` lays other values over them where
`TTS_PROFILE=<name>`, and its list `drop` takes keys out first. A variable such as
`TTS__SFT__ANNOUNCER__STEPS=20` overrides one value. Relative paths start at the file. What cannot
be is refused when the file is read, with what to write instead.

Where a key is a table, its keys follow in a section of their own.
"""
SIGNS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))


def main() -> None:
    TARGET.write_text(reference())
    print(f"wrote {TARGET}")


def reference() -> str:
    """The page, as text."""
    sections = [HEAD]
    for path, model in tables():
        sections.append(section(path, model))
    return "\n".join(sections)


def tables() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every table of the file with its model, in the file's order; a model is told once a path."""
    for name, field in Settings.model_fields.items():
        for keyed, model in models(field.annotation):
            yield from nested(f"{name}.<name>" if keyed else name, model)


def nested(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        for keyed, inner in models(field.annotation):
            yield from nested(f"{path}.{name}.<name>" if keyed else f"{path}.{name}", inner)


def models(annotation: Any, keyed: bool = False) -> Iterator[tuple[bool, type[BaseModel]]]:
    """The models in a type, and whether they stand below keys of a user's choice."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield keyed, annotation
        return
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        arguments, keyed = arguments[1:], True
    if get_origin(annotation) is not Literal:
        for argument in arguments:
            yield from models(argument, keyed)


def section(path: str, model: type[BaseModel]) -> str:
    lines = [f"\n## `[{path}]`\n"]
    if words := summary(model):
        lines.append(f"{words}\n")
    lines += ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", kind(field.annotation), default(field), help_of(field))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(model: type[BaseModel]) -> str:
    """The docstring of the model in Markdown, its own and not pydantic's."""
    text = model.__dict__.get("__doc__") or ""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"^`\[[^`]*\]`[:.] ", "", text)  # the heading says it
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    words = "\n\n".join(part for part in paragraphs if part)
    return words[:1].upper() + words[1:]


def kind(annotation: Any) -> str:
    """A type in words of TOML."""
    if annotation is type(None):
        return ""
    names = {bool: "boolean", int: "integer", float: "number", str: "text", Path: "path"}
    if annotation in names:
        return names[annotation]
    if annotation is Any:
        return "any"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(filter(None, (kind(argument) for argument in arguments)))
    if origin is dict:
        return f"table of {kind(arguments[1])}"
    if origin in (tuple, list, typing.Sequence):
        return f"list of {kind(arguments[0])}"
    return "table" if isinstance(annotation, type) and issubclass(annotation, BaseModel) else "any"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    if field.default_factory_takes_validated_data:
        return "see right"
    value = field.get_default(call_default_factory=True)
    if value == {}:
        return "empty"
    if value is None:
        return "unset"
    if isinstance(value, BaseModel):
        return "its own"
    return f"`{json.dumps(plain(value), ensure_ascii=False)}`"


def plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def help_of(field: FieldInfo) -> str:
    """Its description and its bounds."""
    bounds = [
        f"{sign} {getattr(rule, attribute):g}"
        for kind_, attribute, sign in SIGNS
        for rule in field.metadata
        if isinstance(rule, kind_)
    ]
    words = (field.description or "").replace("|", "\\|")
    return "; ".join(filter(None, (words, ", ".join(bounds))))


if __name__ == "__main__":
    main()
