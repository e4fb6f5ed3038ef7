"""Listening notebooks: the one kind of metadata in which Dagster's UI plays audio.

``MetadataValue.notebook(path)`` shows an ``.ipynb`` in a frame, with ``<audio>`` elements whose
sources are data URIs. (In markdown metadata the UI strips them.)
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOTEBOOK_FILE = "listening.ipynb"
PLAYED_AS = {".flac": "audio/flac", ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}
MARKS = re.compile(r"([\\`*_\[\]#|~$])")
ROW = (
    '<div style="display:grid;grid-template-columns:minmax(0,1fr) 320px;gap:4px 24px;'
    'align-items:center;padding:10px 0;border-bottom:1px solid #ddd;font:15px/1.45 sans-serif">'
    '<div>{title}<div style="color:#777;font-size:13px">{caption}</div></div>'
    '<audio controls preload="metadata" style="width:100%" src="{source}"></audio></div>'
)


@dataclass(frozen=True)
class NotebookClip:
    """Something to play: a title, a line below it, and a file that browsers play."""

    title: str
    caption: str
    path: Path


@dataclass(frozen=True)
class Section:
    title: str
    clips: Sequence[NotebookClip]


def write_notebook(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write a notebook with a player for each clip. The audio is inside: it needs no other file."""
    cells = [markdown(f"# {literal(title)}")]
    for section in sections:
        cells += [markdown(f"## {literal(section.title)}"), players(section.clips)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook, indent=1) + "\n")


def literal(text: str) -> str:
    """A transcript says ``<laugh>`` and ``*``: neither HTML nor Markdown."""
    return MARKS.sub(r"\\\1", html.escape(text, quote=False))


def markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def players(clips: Sequence[NotebookClip]) -> dict[str, Any]:
    """A cell without code whose output is the players."""
    output = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"text/html": "\n".join(player(clip) for clip in clips)},
    }
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "source": "",
        "outputs": [output],
    }


def player(clip: NotebookClip) -> str:
    kind = PLAYED_AS.get(clip.path.suffix)
    if kind is None:
        raise ValueError(f"{clip.path}: browsers play {sorted(PLAYED_AS)}; write it as one of them")
    audio = base64.b64encode(clip.path.read_bytes()).decode()
    return ROW.format(
        title=html.escape(clip.title),
        caption=html.escape(clip.caption),
        source=f"data:{kind};base64,{audio}",
    )
