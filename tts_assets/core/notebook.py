"""Notebooks with audio players, the only metadata in which the Dagster UI plays audio.

``MetadataValue.notebook(path)`` shows an ``.ipynb`` in a frame, including ``<audio>`` elements with
data URIs. The UI removes these elements from Markdown metadata.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts_assets.core.metadata import literal

NOTEBOOK_FILE = "listening.ipynb"
PLAYED_AS = {".flac": "audio/flac", ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}
ROW = (
    '<div style="display:grid;grid-template-columns:minmax(0,1fr) 320px;gap:4px 24px;'
    'align-items:center;padding:10px 0;border-bottom:1px solid #ddd;font:15px/1.45 sans-serif">'
    '<div>{title}<div style="color:#777;font-size:13px">{caption}</div></div>'
    '<audio controls preload="metadata" style="width:100%" src="{source}"></audio></div>'
)


@dataclass(frozen=True)
class NotebookClip:
    """One player: a title, a caption below it, and a file with a suffix of :data:`PLAYED_AS`."""

    title: str
    caption: str
    path: Path


@dataclass(frozen=True)
class Section:
    """A heading and the players below it."""

    title: str
    clips: Sequence[NotebookClip]


def write_notebook(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write a notebook with one player per clip. The audio is embedded in the notebook."""
    cells = [markdown(f"# {literal(title)}")]
    for section in sections:
        cells += [markdown(f"## {literal(section.title)}"), players(section.clips)]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook, indent=1) + "\n")


def markdown(text: str) -> dict[str, Any]:
    """A Markdown cell."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def players(clips: Sequence[NotebookClip]) -> dict[str, Any]:
    """A code cell without code, whose output has the players."""
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
    """The HTML of one player. Raises ValueError for a format that browsers do not play."""
    kind = PLAYED_AS.get(clip.path.suffix)
    if kind is None:
        raise ValueError(f"{clip.path}: browsers play {sorted(PLAYED_AS)}; write it as one of them")
    audio = base64.b64encode(clip.path.read_bytes()).decode()
    return ROW.format(
        title=html.escape(clip.title),
        caption=html.escape(clip.caption),
        source=f"data:{kind};base64,{audio}",
    )
