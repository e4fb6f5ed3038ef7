"""The base of every configuration: frozen, typed, and without unknown keys."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class ConfigError(ValueError):
    """A configuration that cannot be: the message names the key and what to write instead."""


class Config(BaseModel):
    """A frozen model that refuses unknown keys and names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        known = set(cls.model_fields) | {f.alias for f in cls.model_fields.values() if f.alias}
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), sorted(known), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {sorted(known)}"
                raise ValueError(f"unknown key {key!r} in {cls.__name__}: {hint}")
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Validate ``values``; raise :class:`ConfigError` naming ``source`` and every bad key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe(error, source)) from None

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read a JSON file written by hand or by :meth:`to_json`."""
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such configuration file") from None
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: not JSON ({error})") from None
        return cls.parse(values, str(path))

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def describe(error: ValidationError, source: str) -> str:
    """One line for each problem: ``source: where: what``."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        lines.append(f"{source}: {where}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, models dumped. Floats as repr."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
