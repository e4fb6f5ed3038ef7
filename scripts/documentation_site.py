"""MkDocs hook of the documentation site (see mkdocs.yml).

It adds three kinds of pages to those of docs/:

* Markdown files of the repository that documents link to: benchmarks/*.md, the README files below
  examples/, CONTRIBUTING.md and CHANGELOG.md. The site shows them unchanged.
* api.md and api/<package>.md: the API reference, one page per package, by mkdocstrings.
* benchmarks.md: the list of benchmark documents.

Links between documents are written for GitHub (relative to the file in the repository). The hook
rewrites them to the places of the pages on the site. It draws Mermaid diagrams as SVG: the theme
would load Mermaid from another host.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import mmdr
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tts_assets", "resources", "sensors", "jobs")
RENAMED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#:]+\.md)(#[^)\s]*)?(\))")


def repository_pages() -> dict[str, str]:
    """Markdown files outside of docs/: path in the repository -> path on the site."""
    found = [*ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/**/README.md")]
    paths = [str(path.relative_to(ROOT)) for path in sorted(found)]
    return {path: path for path in paths} | RENAMED


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for path, page in repository_pages().items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    generated = {"benchmarks.md": benchmark_list(), **api_pages()}
    for page, text in generated.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links between documents to their places on the site, and draw diagrams."""
    site = page.file.src_uri
    sources = {target: path for path, target in repository_pages().items()}
    source = sources.get(site, f"docs/{site}")

    def replace(match: re.Match[str]) -> str:
        target = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2])))
        relative = posixpath.relpath(target, posixpath.dirname(site) or ".")
        return f"{match[1]}{relative}{match[3] or ''}{match[4]}"

    return LINK.sub(replace, DIAGRAM.sub(drawn, markdown))


def drawn(diagram: re.Match[str]) -> str:
    """The SVG of a Mermaid diagram; its lines are dark, also in the theme's dark mode."""
    svg = mmdr.render(diagram[1]).svg()
    return f'<div style="background: white; padding: 1em">{svg}</div>'


def site_path(path: str) -> str:
    """The place on the site of a document, given by its path in the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return repository_pages().get(path, path)


def benchmark_list() -> str:
    """benchmarks.md: every benchmark document with its title."""
    lines = [
        "# Benchmarks\n",
        "Each page has the measured figures of one claim, with date, machine and command. "
        "The scripts are in `benchmarks/`.\n",
    ]
    for path in sorted(ROOT.glob("benchmarks/*.md")):
        title = path.read_text().splitlines()[0].lstrip("# ")
        lines.append(f"- [{title}](../benchmarks/{path.name})")
    return "\n".join(lines) + "\n"


def api_pages() -> dict[str, str]:
    """api.md and a page per package, for mkdocstrings."""
    pages = {}
    index = [
        "# API\n",
        "The public functions and classes, one page per package. They are made from the docstrings "
        "of the code.\n",
        "| package | contents |\n|---|---|",
    ]
    for package, modules in packages().items():
        lines = [f"# {package}\n", *(f"::: {module}\n" for module in modules)]
        pages[f"api/{package}.md"] = "\n".join(lines)
        index.append(f"| [`{package}`](api/{package}.md) | {first_line(package)} |")
    pages["api.md"] = "\n".join(index) + "\n"
    return pages


def packages() -> dict[str, list[str]]:
    """Modules by package: tts_assets/<stage>, resources, sensors and jobs."""
    result: dict[str, list[str]] = {}
    for top in PACKAGES:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__main__":
                continue
            folder = parts[: 2 if top == "tts_assets" and len(parts) > 2 else 1]
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            result.setdefault(".".join(folder), []).append(".".join(parts))
    return result


def first_line(package: str) -> str:
    """The first sentence of a package's docstring."""
    text = ((ROOT / package.replace(".", "/")) / "__init__.py").read_text()
    match = re.match(r'"""(.*?)(\n\n|""")', text, re.S)
    return " ".join(match[1].split()).replace("``", "`") if match else ""
