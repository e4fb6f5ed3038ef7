"""The base of all configurations: frozen pydantic models that reject unknown keys."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class ConfigError(ValueError):
    """Invalid settings. The message names the key and says how to fix it."""


class Config(BaseModel):
    """A frozen model. An unknown key is rejected with the most similar known key.

    ``renamed_keys`` maps former names of keys to present ones. A former name is rejected with the
    present one. The canonical form keeps the former name, so that a rename changes no fingerprint
    and existing artifacts stay valid. ``removed_keys`` maps keys that no longer exist to their
    fixed JSON value, which the canonical form still contains; ``replaced_keys`` says for some of
    them what to write instead. The canonical form omits ``added_keys``, keys that are newer than
    existing artifacts, where they have their default. :meth:`in_former_shape` is for keys that
    replace others of another shape.
    """

    added_keys: ClassVar[frozenset[str]] = frozenset()
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    removed_keys: ClassVar[Mapping[str, Any]] = {}
    replaced_keys: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        known = set(cls.model_fields) | {f.alias for f in cls.model_fields.values() if f.alias}
        for key in values:
            if key in cls.replaced_keys:
                raise ValueError(f"the key {key!r} was removed: {cls.replaced_keys[key]}")
            if key in cls.renamed_keys:
                present = cls.renamed_keys[key]
                raise ValueError(f"the key {key!r} is now called {present!r}: rename it")
            if key in cls.removed_keys:
                fixed = json.dumps(cls.removed_keys[key])
                raise ValueError(
                    f"the key {key!r} was removed, its value is always {fixed}: delete it"
                )
            if key not in known:
                near = difflib.get_close_matches(str(key), sorted(known), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {sorted(known)}"
                raise ValueError(f"unknown key {key!r} in {cls.__name__}: {hint}")
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Validate ``values``. Raises :class:`ConfigError` with ``source`` and all invalid keys."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe(error, source)) from None

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read a JSON file. Raises :class:`ConfigError` as :meth:`parse` does."""
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such configuration file") from None
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: not JSON ({error})") from None
        return cls.parse(values, str(path))

    def canonical(self, exclude: set[str] | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The values that fingerprints are made of: JSON types, under the former names of keys.

        ``exclude``: present names of fields to leave out, as pydantic's ``model_dump`` takes them.
        """
        return _with_former_keys(self, self.model_dump(mode="json", exclude=exclude))

    def in_former_shape(self, values: dict[str, Any]) -> dict[str, Any]:
        """The canonical form from ``values``, which have the former names of keys."""
        return values

    def to_json(self) -> str:
        """Indented JSON with sorted keys, under the present names of keys."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"


def describe(error: ValidationError, source: str) -> str:
    """One line per problem: source, key path and message."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        lines.append(f"{source}: {where}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def canonical_json(value: Any) -> str:
    """JSON without spaces, with sorted keys and models in their canonical form."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """The SHA-256 of :func:`canonical_json` in hexadecimal digits."""
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
        omitted = {key for key in getattr(type(value), "added_keys", ()) if _is_default(value, key)}
        former_values = dict(getattr(type(value), "removed_keys", {})) | {
            former.get(key, key): _with_former_keys(getattr(value, key), item)
            for key, item in dumped.items()
            if key not in omitted
        }
        return value.in_former_shape(former_values) if isinstance(value, Config) else former_values
    if isinstance(value, Mapping):
        items = {str(key): item for key, item in value.items()}
        return {key: _with_former_keys(items[key], item) for key, item in dumped.items()}
    if isinstance(value, (list, tuple)):
        return [_with_former_keys(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped


def _is_default(value: BaseModel, key: str) -> bool:
    default = type(value).model_fields[key].get_default(call_default_factory=True)
    return bool(getattr(value, key) == default)
