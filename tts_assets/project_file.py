"""Reads ``dagster_project.toml`` as layers: preset, file, profile, overrides, environment.

Each layer replaces values of those before it. ``preset = "small-cpu"`` at the top of the file names
a TOML file of ``tts_assets/presets``, the lowest layer. Its table ``[recipe]`` holds the values of
every ``[sft.<name>]`` of the file, and ``[codec_of_corpora]`` those of ``[codec.train]`` for all
corpora of the file. The preset ``demo`` is the project file of the demo itself.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts_assets.core.config import ConfigError

PROJECT_FILE = "dagster_project.toml"
EMBEDDED = "embedded"
PACKAGE = Path(__file__).resolve().parent
PRESETS = PACKAGE / "presets"
DATA = PACKAGE / "data"  # links to the demo's files of the checkout; the wheel has copies
DEMO = "demo"
RECIPE, CODEC_OF_CORPORA = "recipe", "codec_of_corpora"
# Keys of one table that exclude each other: one in another layer removes those of the preset. The
# star is the name of a recipe.
ALTERNATIVES = (
    ("codec", ("checkpoint", "train")),
    ("sft.*", ("steps", "epochs")),
    ("sft.*.base", ("llama", "hub", "recipe")),
)


@dataclass(frozen=True)
class Layer:
    """Values from one source. ``drop`` names keys of earlier layers to remove first.

    ``source`` is what ``tts-assets config show`` prints, ``where`` the start of error messages.
    """

    source: str
    values: Mapping[str, Any]
    drop: tuple[str, ...] = ()
    where: str = ""


@dataclass(frozen=True)
class ProjectFile:
    """The name of the preset, and all layers of a project file, the lowest first."""

    path: Path
    preset: str | None
    layers: tuple[Layer, ...]

    def values(self) -> dict[str, Any]:
        """The values in force. Raises :class:`ConfigError` for a key that cannot be dropped."""
        return combine(self.layers)

    def sources(self) -> dict[str, Any]:
        """The same tables with the source of each value in its place."""
        named = [
            Layer(layer.source, _named(layer.values, layer.source), layer.drop, layer.where)
            for layer in self.layers
        ]
        return combine(named)


def read_project(
    path: Path | None = None,
    profile: str | None = None,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> ProjectFile:
    """The layers of a project file. Raises :class:`ConfigError` with the file and the remedy."""
    path = (path or project_file(environment)).resolve()
    values = read_toml(path)
    profiles = values.pop("profiles", {})
    preset = values.pop("preset", None)
    profile = profile or environment.get("TTS_PROFILE", EMBEDDED)
    if profile != EMBEDDED and profile not in profiles:
        raise ConfigError(f"{path}: no profile {profile!r}; known: {[EMBEDDED, *profiles]}")
    chosen = dict(profiles.get(profile, {}))
    dropped = tuple(chosen.pop("drop", []))
    layers = [
        Layer(path.name, values),
        Layer(f"profile {profile}", chosen, dropped, f"{path}: profiles.{profile}.drop"),
        Layer("override", overrides or {}),
        Layer("environment", environment_overrides(environment)),
    ]
    if preset is not None:
        named = {
            table: [name for layer in layers for name in layer.values.get(table, {})]
            for table in ("sft", "corpora")
        }
        below = preset_values(preset, named["sft"], named["corpora"], str(path))
        for layer in layers:
            below = without_alternatives(below, layer.values)
        layers.insert(0, Layer(f"preset {preset}", below))
    return ProjectFile(path, preset, tuple(layers))


def project_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The path in ``TTS_PROJECT``; else the file of this folder or of the nearest one above it.

    Where there is none, it is the project file of this checkout.
    """
    named = environment.get("TTS_PROJECT")
    if named:
        return Path(named)
    here = Path.cwd()
    found = (folder / PROJECT_FILE for folder in (here, *here.parents))
    return next((path for path in found if path.is_file()), PACKAGE.parent / PROJECT_FILE)


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a project file or preset. Raises :class:`ConfigError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no project file; run the command in a project, or make one: "
            "tts-assets init FOLDER"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def presets() -> dict[str, Path]:
    """The presets by name."""
    found = {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
    return {**found, DEMO: DATA / PROJECT_FILE}


def preset_summary(name: str) -> str:
    """What a preset is for: the first comment of its file."""
    if name == DEMO:
        return "Two CPU cores: the demo's corpus, recipes and reports (docs/demo.md)"
    return presets()[name].read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def gives_recipes(name: str | None) -> bool:
    """Whether a preset completes every ``[sft.<name>]`` of the file."""
    known = presets()
    return name in known and RECIPE in read_toml(known[name])


def preset_values(
    name: str, recipes: Iterable[str], corpora: Sequence[str], source: str
) -> dict[str, Any]:
    """The values of a preset for a file with these names. Raises :class:`ConfigError`.

    Strings that name a file or folder beside the preset become absolute paths.
    """
    known = presets()
    if name not in known:
        raise ConfigError(f"{source}: preset: no preset {name!r}; known: {', '.join(known)}")
    values = read_toml(known[name])
    values.pop("profiles", None)
    recipe = values.pop(RECIPE, None)
    if recipe is not None:
        values["sft"] = dict.fromkeys(recipes, recipe)
    adapted = values.pop(CODEC_OF_CORPORA, None)
    if adapted is not None and corpora:
        del values["codec"]["checkpoint"]
        values["codec"]["train"] = {**adapted, "corpora": dict.fromkeys(corpora, 1.0)}
    made: dict[str, Any] = _with_paths(values, known[name].parent)
    return made


def _with_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_paths(item, folder) for key, item in value.items()}
    if isinstance(value, str) and "/" in value and (folder / value).exists():
        return str((folder / value).resolve())
    return value


def without_alternatives(preset: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``preset`` without the keys that exclude one of ``over`` (:data:`ALTERNATIVES`)."""
    kept = overlay(preset, {})
    for pattern, keys in ALTERNATIVES:
        for table in _tables(over, pattern.split(".")):
            given = _at(over, table)
            if not set(keys) & set(given):
                continue
            *above, last = table
            node = _at(kept, above)
            if isinstance(node.get(last), Mapping):
                node[last] = {key: v for key, v in node[last].items() if key not in keys}
    return kept


def _tables(values: Mapping[str, Any], pattern: list[str]) -> list[list[str]]:
    """The paths of the tables that ``pattern`` describes."""
    if not pattern:
        return [[]]
    first, rest = pattern[0], pattern[1:]
    names = list(values) if first == "*" else [first]
    return [
        [name, *below]
        for name in names
        if isinstance(values.get(name), Mapping)
        for below in _tables(values[name], rest)
    ]


def with_folders(recipes: Any, root: Path) -> Any:
    """``[sft]`` with the absolute path of each ``base.hub`` that is a folder below ``root``."""
    if isinstance(recipes, Mapping):
        for base in (one.get("base") for one in recipes.values() if isinstance(one, Mapping)):
            if isinstance(base, dict) and isinstance(hub := base.get("hub"), str) and hub:
                base["hub"] = str((root / hub).resolve()) if (root / hub).is_dir() else hub
    return recipes


def _at(values: Any, path: Iterable[str]) -> Any:
    for key in path:
        values = values.get(key, {})
    return values


def combine(layers: Iterable[Layer]) -> dict[str, Any]:
    """The values of all layers. Raises :class:`ConfigError` for a key that cannot be dropped."""
    values: dict[str, Any] = {}
    for layer in layers:
        values = overlay(values, {})
        for dotted in layer.drop:
            drop(values, dotted, layer.where)
        values = overlay(values, layer.values)
    return values


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``. Tables are merged, other values are replaced.

    The result shares no table with ``base``.
    """
    merged = {key: overlay(v, {}) if isinstance(v, Mapping) else v for key, v in base.items()}
    for key, value in over.items():
        both_tables = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = overlay(merged[key], value) if both_tables else value
    return merged


def drop(values: dict[str, Any], dotted: str, source: str) -> None:
    """Remove the key ``a.b.c`` from nested tables. Raises :class:`ConfigError` if it is missing."""
    *tables, key = dotted.split(".")
    node: Any = values
    for table in tables:
        node = node.get(table, {})
    if key not in node:
        raise ConfigError(f"{source}: there is no {dotted} to drop")
    del node[key]


def environment_overrides(environment: Mapping[str, str]) -> dict[str, Any]:
    """``TTS__SFT__ANNOUNCER__STEPS=20`` as ``{"sft": {"announcer": {"steps": 20}}}``."""
    values: dict[str, Any] = {}
    for name, text in sorted(environment.items()):
        if not name.startswith("TTS__"):
            continue
        *tables, key = name.removeprefix("TTS__").lower().split("__")
        node = values
        for table in tables:
            node = node.setdefault(table, {})
        node[key] = _toml_value(text)
    return values


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _named(value: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``value`` with ``source`` in place of all values that are no tables."""
    return {
        key: _named(item, source) if isinstance(item, Mapping) else source
        for key, item in value.items()
    }
