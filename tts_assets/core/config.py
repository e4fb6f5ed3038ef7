"""The base of every configuration: frozen, typed, and without unknown keys."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class ConfigError(ValueError):
    """A configuration that cannot be: the message names the key and what to write instead."""


class Config(BaseModel):
    """A frozen model that refuses unknown keys and names the nearest known one.

    ``renamed_keys`` has the former names of keys, and their present names. A former name is refused
    with the present one. The canonical form keeps the former name: a renamed key changes no
    fingerprint, and what was built before is taken over. ``removed_keys`` has keys that no longer
    exist, with the JSON value that they always have now; the canonical form still holds it.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    removed_keys: ClassVar[Mapping[str, Any]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        known = set(cls.model_fields) | {f.alias for f in cls.model_fields.values() if f.alias}
        for key in values:
            if key in cls.renamed_keys:
                present = cls.renamed_keys[key]
                raise ValueError(f"the key {key!r} is now called {present!r}: rename it")
            if key in cls.removed_keys:
                fixed = json.dumps(cls.removed_keys[key])
                raise ValueError(
                    f"the key {key!r} was removed, its value is always {fixed}: drop it"
                )
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

    def canonical(self, exclude: set[str] | None = None) -> dict[str, Any]:
        """The values as fingerprints see them: JSON types, under the former names of keys.

        ``exclude``: present names of fields to leave out.
        """
        return _with_former_keys(self, self.model_dump(mode="json", exclude=exclude))

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
        return _with_former_keys(value, value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _with_former_keys(value: Any, dumped: Any) -> Any:
    """``dumped``, the JSON of ``value``, with the former names of all renamed keys."""
    if isinstance(value, BaseModel):
        renamed = getattr(type(value), "renamed_keys", {})
        former = {present: old for old, present in renamed.items()}
        return dict(getattr(type(value), "removed_keys", {})) | {
            former.get(key, key): _with_former_keys(getattr(value, key), item)
            for key, item in dumped.items()
        }
    if isinstance(value, Mapping):
        items = {str(key): item for key, item in value.items()}
        return {key: _with_former_keys(items[key], item) for key, item in dumped.items()}
    if isinstance(value, (list, tuple)):
        return [_with_former_keys(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped
