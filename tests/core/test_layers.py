"""The layer rules: packages import downwards only, and few files import Dagster."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache

from scripts.measure_code import ROOT, Source, cycles, import_graph, read_sources

# From the lowest to the highest. A module imports its own package and those of lower layers.
# Packages of one layer do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("resources",),
    ("orchestration",),
    ("normalization",),
    ("audio_models",),
    ("corpora",),
    ("codec", "provenance"),
    ("arrays",),
    ("speechlm",),
    ("sft", "serving", "speakers"),
    ("rlhf",),
    ("evaluation",),
    ("codec_report", "export", "external_models", "promotion"),
    ("project_file",),
    ("settings",),
    ("doctor", "sensors", "jobs"),
    ("definitions",),
    ("cli",),
)
# A command reads the project file. No module imports a command.
COMMANDS = {
    "tts_assets.promotion.__main__": "doctor",
    "tts_assets.provenance.__main__": "doctor",
}
# Other names for the same packages in commits before the redesign, for scripts/measure_code.py.
FORMER = {"hearing": "audio_models", "families": "external_models", "training": "core"}
MAY_IMPORT_DAGSTER = {"orchestration", "definitions", "resources", "sensors", "jobs"}  # packages
MAY_IMPORT_DAGSTER_FILES = {"assets.py", "checks.py"}


def layer(module: str) -> int:
    """The index in LAYERS of the package of ``module``; modules outside of a package are core."""
    known = {name: level for level, names in enumerate(LAYERS) for name in names}
    return known.get(package(module), known["core"])


def package(module: str) -> str:
    """The name in LAYERS: the part below ``tts_assets``, or the top-level package."""
    if module in COMMANDS:
        return COMMANDS[module]
    top, _, rest = module.partition(".")
    name = rest.partition(".")[0] if top == "tts_assets" else top
    return FORMER.get(name, name)


def forbidden_imports(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """``importer imports imported`` of all imports that go up or sideways."""
    return [
        f"{module} imports {other}"
        for module in sorted(graph)
        for other in sorted(graph[module])
        if package(module) != package(other) and layer(other) >= layer(module)
        if layer(other) > 0  # loose modules of old commits count as core
    ]


@cache
def sources() -> list[Source]:
    return read_sources(ROOT)


def test_every_package_has_a_layer() -> None:
    packages = {package(source.module) for source in sources()} - {""}
    assert packages == {name for names in LAYERS for name in names}


def test_packages_import_lower_layers_only() -> None:
    assert forbidden_imports(import_graph(sources())) == []


def test_an_import_against_the_layers_is_found() -> None:
    graph = {"tts_assets.core.audio": {"tts_assets.sft.train"}, "tts_assets.sft.train": set()}
    assert forbidden_imports(graph) == ["tts_assets.core.audio imports tts_assets.sft.train"]


def test_there_are_no_import_cycles() -> None:
    assert cycles(import_graph(sources())) == []


def test_only_files_that_define_assets_import_dagster() -> None:
    importers = [source.module for source in sources() if imports_dagster(source)]
    allowed = [source.module for source in sources() if may_import_dagster(source)]
    assert sorted(set(importers) - set(allowed)) == []


def imports_dagster(source: Source) -> bool:
    """Also inside functions; ``dagster_pipes`` of launched programs is another package."""
    for node in ast.walk(source.tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if any(name.partition(".")[0] == "dagster" for name in names):
            return True
    return False


def may_import_dagster(source: Source) -> bool:
    return (
        package(source.module) in MAY_IMPORT_DAGSTER or source.path.name in MAY_IMPORT_DAGSTER_FILES
    )
