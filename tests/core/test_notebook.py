"""Listening notebooks as Dagster's UI renders them."""

from __future__ import annotations

import html
from pathlib import Path

from tts_assets.core.notebook import Section, write_notebook


def test_a_transcript_is_shown_as_it_is_written(tmp_path: Path) -> None:
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
