#!/usr/bin/env python3
"""Write docs/configuration.md from the model of the project file.

    python scripts/make_configuration_reference.py

The page has every table with its keys, types, defaults and help texts, as tts_assets/settings.py
validates them. `tests/docs` compares the page with the code.
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

After this page you can look up every key of `dagster_project.toml`.

This page is generated from the code by `python scripts/make_configuration_reference.py`.

- `preset = "small-cpu"` at the top of the file takes all values that the file does not give from a
  preset. `tts-assets config presets` lists them, `tts-assets config show` prints where each value
  comes from ([presets](project.md#presets)).
- `[profiles.<name>]` replaces values if `TTS_PROFILE=<name>` is set. Its list `drop` removes keys
  first.
- A variable such as `TTS__SFT__ANNOUNCER__STEPS=20` replaces one value.
- Relative paths start at the file.
- Invalid settings are rejected on load. The message says how to fix them.
- If the value of a key is a table, a section of its own describes its keys.
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
    """Every table of the file with its model, in the order of the file."""
    for name, field in Settings.model_fields.items():
        for keyed, model in models(field.annotation):
            yield from nested(f"{name}.<name>" if keyed else name, model)


def nested(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The table at ``path`` and all tables in it."""
    yield path, model
    for name, field in model.model_fields.items():
        for keyed, inner in models(field.annotation):
            yield from nested(f"{path}.{name}.<name>" if keyed else f"{path}.{name}", inner)


def models(annotation: Any, keyed: bool = False) -> Iterator[tuple[bool, type[BaseModel]]]:
    """The models in a type, and whether they are below keys that the user chooses."""
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
    """The section of one table, in Markdown."""
    lines = [f"\n## `[{path}]`\n"]
    if words := summary(model):
        lines.append(f"{words}\n")
    lines += ["| key | type | default | description |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", kind(field.annotation), default(field), help_of(field))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(model: type[BaseModel]) -> str:
    """The docstring of the model itself (not of pydantic's base class), in Markdown."""
    text = model.__dict__.get("__doc__") or ""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"^`\[[^`]*\]`[:.] ", "", text)  # the heading says it
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    words = "\n\n".join(part for part in paragraphs if part)
    return words[:1].upper() + words[1:]


def kind(annotation: Any) -> str:
    """A type in the terms of TOML."""
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
    """The default of a field, as the table shows it."""
    if field.is_required():
        return "*required*"
    if field.default_factory_takes_validated_data:
        return "see description"
    value = field.get_default(call_default_factory=True)
    if value == {}:
        return "empty"
    if value is None:
        return "unset"
    if isinstance(value, BaseModel):
        return "see its section"
    return f"`{json.dumps(plain(value), ensure_ascii=False)}`"


def plain(value: Any) -> Any:
    """``value`` as JSON can represent it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def help_of(field: FieldInfo) -> str:
    """The description and the bounds of a field."""
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
