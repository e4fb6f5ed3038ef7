"""Notebooks with audio players as the Dagster UI renders them."""

from __future__ import annotations

import html
from pathlib import Path

import polars as pl

from tts_assets.core.metadata import (
    Section,
    csv_cell,
    literal,
    markdown_table,
    table_row,
    write_notebook,
)


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


NASTY = "a|b\n<img src=x onerror=alert(1)> [x](javascript:y) `c` _d_ my_voice"


def test_names_cannot_break_out_of_a_table() -> None:
    import markdown

    rows = pl.DataFrame({"speaker": [NASTY, "ann"], "clips": [1, 2]})
    for table in (str(markdown_table(rows, longest=200)), lines_of(rows)):
        page = markdown.markdown(table, extensions=["tables"])
        assert page.count("<tr>") == 3 and page.count("<td") == 4
        assert "<img" not in page and "<a " not in page and "<em>" not in page
        assert "my_voice" in table and "code>" not in page


def lines_of(rows: pl.DataFrame) -> str:
    head = ["| speaker | clips |", "|---|---|"]
    return "\n".join([*head, *(table_row([name, str(n)]) for name, n in rows.iter_rows())])


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("asterisk_en", "CC-BY-NC-4.0", "code_arrays", "Ádám, 12 %"):
        assert literal(name) == name


def test_spreadsheets_do_not_run_names() -> None:
    assert csv_cell("=HYPERLINK(0)") == "'=HYPERLINK(0)"
    assert [csv_cell(name) for name in ("+1", "-1", "@a", "ann")] == ["'+1", "'-1", "'@a", "ann"]
