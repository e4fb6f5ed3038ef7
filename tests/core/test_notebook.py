"""Notebooks with audio players as the Dagster UI renders them."""

from __future__ import annotations

import html
from pathlib import Path

from tts_assets.core.notebook import Section, write_notebook


def test_transcripts_are_escaped(tmp_path: Path) -> None:
    import nbformat
    from nbconvert import HTMLExporter

    said = "Well <laugh> press *1* & _say_ $5, [or] <script>alert(1)</script>"
    path = tmp_path / "listening.ipynb"
    write_notebook(path, "<b>Clips</b>", [Section(said, [])])
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(nbformat.read(path, 4))
    shown = html.escape(said, quote=False)
    assert shown in page
    assert "&lt;b&gt;Clips&lt;/b&gt;" in page
    assert "<em>" not in page and "<script>alert" not in page
