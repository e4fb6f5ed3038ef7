#!/usr/bin/env python3
"""Measure the shape of the code: sizes, imports, docstrings, configuration keys.

    python scripts/measure_code.py [CHECKOUT]

prints a table in Markdown for this checkout, or for another one of any commit: sources are parsed,
not imported. Only the configuration keys come from an import of ``tts_assets.settings``, in a
separate process. That row says so if the import fails.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tts_assets", "resources", "sensors", "jobs")
LONG_FILE = 450  # lines
# Prints {key path: name} of all leaves of the project file's model.
KEY_PATHS = """
import json, typing
from pydantic import BaseModel
from tts_assets.settings import Settings

def models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models(argument)

def walk(model, prefix):
    for name, field in model.model_fields.items():
        inner = dict.fromkeys(models(field.annotation))
        if not inner or prefix + name in FILES:
            leaves[prefix + name] = name
            continue
        for each in inner:
            walk(each, f"{prefix}{name}.")

FILES = {"text.rules"}  # the project file has the name of a file with such tables
leaves = {}
walk(Settings, "")
print(json.dumps(leaves))
"""
Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Source:
    """One Python file: its dotted module name, its text and its syntax tree."""

    module: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return self.text.count("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the shape of the code.")
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT)
    root = parser.parse_args().checkout.resolve()
    print("| | measured | target |\n|---|---|---|")
    for name, value, target in rows(root):
        print(f"| {name} | {value} | {target} |")


def rows(root: Path) -> Iterator[tuple[str, str, str]]:
    """Name, value and target of each row of the table."""
    everything = read_sources(root)
    stages = [source for source in everything if source.module.split(".")[0] == "tts_assets"]
    graph = import_graph(everything)
    lines = sorted(source.lines for source in stages)
    middle_line = median(s.lines for s in stages if s.path.name != "__init__.py")
    yield "Python files in `tts_assets`", str(len(lines)), "<= 220"
    yield "files per 1,000 lines", f"{1000 * len(lines) / sum(lines):.1f}", "<= 6"
    longest = sum(count > LONG_FILE for count in lines)
    yield (
        "median lines of a file, without `__init__.py`; files over 450",
        f"{middle_line:.0f}; {longest} (longest {lines[-1]})",
        ">= 140; 0",
    )
    loose = [s for s in stages if s.path.parent == root / "tts_assets"]
    outside = [s for s in loose if s.path.stem != "__init__"]
    yield "loose modules at the top of `tts_assets`", str(len(outside)), "<= 3"
    yield (
        "files with exactly one importer, in the same package",
        str(len(single_importer(everything, graph))),
        "<= 25",
    )
    yield (
        "import cycles; imports against the layers",
        f"{len(cycles(graph))}; {len(against_layers(graph))}",
        "0; 0",
    )
    assets = sum(source.lines for source in stages if source.path.name == "assets.py")
    yield "lines of all `assets.py`", f"{assets:,}", "<= 2,000"
    middle, most, top = function_lengths(stages)
    yield (
        "functions: median / 90th percentile / longest",
        f"{middle}/{most}/{top}",
        "below 10/30/70",
    )
    yield "public functions and methods with docstrings", f"{documented(stages):.0%}", ">= 90 %"
    yield "comment lines, of source lines", f"{comments(stages):.1%}", ""
    yield "configuration key paths; unused", configuration(root), "<= 400; 0"
    readme = root / "README.md"
    yield "README words", f"{len(readme.read_text().split()):,}", "<= 1,300"


def read_sources(root: Path) -> list[Source]:
    """All files of :data:`PACKAGES` below ``root``, sorted by module name."""
    found = []
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text(encoding="utf-8")
            found.append(Source(module, path, text, ast.parse(text)))
    return sorted(found, key=lambda source: source.module)


def import_graph(sources: Iterable[Source]) -> dict[str, set[str]]:
    """The modules that each module imports, anywhere in its text, of those in ``sources``.

    ``from package import module`` is an import of ``package.module``.
    """
    sources = list(sources)
    known = {source.module for source in sources}
    graph = {}
    for source in sources:
        names: set[str] = set()
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in known else node.module for name in inner}
        graph[source.module] = names & known
    return graph


def single_importer(sources: Iterable[Source], graph: Graph) -> list[str]:
    """Modules that only one module imports, from the same package; without ``__*__`` files."""
    importers = defaultdict(set)
    for module, imported in graph.items():
        for name in imported:
            importers[name].add(module)
    package = {source.module: source.module.rpartition(".")[0] for source in sources}
    return [
        source.module
        for source in sources
        if not source.path.name.startswith("__")
        and len(importers[source.module]) == 1
        and package[next(iter(importers[source.module]))] == package[source.module]
    ]


def cycles(graph: Graph) -> list[list[str]]:
    """Sets of two or more modules that import each other: strongly connected components.

    Tarjan's algorithm (SIAM J. Comput. 1972).
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            start = stack.index(module)
            component = sorted(stack[start:])
            del stack[start:]
            if len(component) > 1:
                found.append(component)

    for module in graph:
        if module not in index:
            visit(module)
    return found


def against_layers(graph: Graph) -> list[str]:
    """Imports that ``tests/core/test_layers.py`` forbids; it holds the order of the packages."""
    sys.path.insert(0, str(ROOT))
    from tests.core.test_layers import forbidden_imports

    return forbidden_imports(graph)


def function_lengths(sources: Iterable[Source]) -> tuple[int, int, int]:
    """Median, 90th percentile and maximum of the lines of functions, decorators excluded."""
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    )
    return round(median(lengths)), round(quantiles(lengths, n=10)[8]), lengths[-1]


def documented(sources: Iterable[Source]) -> float:
    """The share of functions and methods without a leading underscore that have a docstring."""
    public = [
        node
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not node.name.startswith("_")
    ]
    return sum(ast.get_docstring(node) is not None for node in public) / len(public)


def comments(sources: Iterable[Source]) -> float:
    """Comments, also at the end of a line of code, as a share of the non-blank lines."""
    found = total = 0
    for source in sources:
        total += sum(bool(line.strip()) for line in source.text.splitlines())
        with tokenize.open(source.path) as stream:
            tokens = tokenize.generate_tokens(stream.readline)
            found += sum(token.type == tokenize.COMMENT for token in tokens)
    return found / total


def configuration(root: Path) -> str:
    """How many leaves ``dagster_project.toml`` may set, and which nothing in the checkout sets."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KEY_PATHS],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return "not measured: tts_assets.settings cannot be imported"
    leaves: dict[str, str] = json.loads(done.stdout)
    text = "\n".join(path.read_text() for path in texts_that_set_keys(root))
    unused = [path for path, name in leaves.items() if not is_set(name, text)]
    return f"{len(leaves)}; {len(unused)}{' (' + ', '.join(unused) + ')' if unused else ''}"


def texts_that_set_keys(root: Path) -> Iterator[Path]:
    yield root / "dagster_project.toml"
    for folder in ("tests", "benchmarks", "examples", "scripts"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".toml", ".py", ".sh"):
                yield path


def is_set(name: str, text: str) -> bool:
    """Whether ``text`` names the key: in TOML, as a keyword, a quoted path or a variable."""
    return bool(
        re.search(rf'(?<![\w.]){name}\s*=[^=]|["\'.]{name}["\'.=\s:]|__{name.upper()}\b', text)
    )


if __name__ == "__main__":
    main()
