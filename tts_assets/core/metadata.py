"""What assets and checks show in the UI, in plain types: stages describe artifacts without Dagster.

Metadata is a mapping by name. A dict is shown as JSON, and a :class:`Path` as a link, that of an
``.ipynb`` to the viewer of notebooks. ``resources/artifact_store.py`` converts all values for
Dagster.

Notebooks with audio players are the only metadata in which the Dagster UI plays audio: it shows an
``.ipynb`` in a frame, including ``<audio>`` elements with data URIs. It removes these elements from
Markdown. Plots are PNG data URIs, for Markdown metadata and for reports.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from tts_assets.core.accounting import SET_ASIDE_FILE, count_reasons, read_set_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metadata = Mapping[str, Any]
# Underscores within words are no marks: names of corpora and assets stay as they are.
MARKS = re.compile(r"([\\`*\[\]#|~$]|(?<![^\W_])_|_(?![^\W_]))")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is run by spreadsheets
NOTEBOOK_FILE = "listening.ipynb"
PLAYED_AS = {".flac": "audio/flac", ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}
ROW = (
    '<div style="display:grid;grid-template-columns:minmax(0,1fr) 320px;gap:4px 24px;'
    'align-items:center;padding:10px 0;border-bottom:1px solid #ddd;font:15px/1.45 sans-serif">'
    '<div>{title}<div style="color:#777;font-size:13px">{caption}</div></div>'
    '<audio controls preload="metadata" style="width:100%" src="{source}"></audio></div>'
)
PANEL_INCHES = (5.0, 3.0)


class Markdown(str):
    """A text that is shown as Markdown."""


@dataclass(frozen=True)
class Link:
    """A text that leads to a file of the storage, or to the element ``anchor`` of a page."""

    text: str
    path: Path
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """Rows with the same columns, of texts and links."""

    rows: Sequence[Mapping[str, str | Link]]


@dataclass(frozen=True)
class Columns:
    """The names and types of a table's columns, and descriptions where names do not suffice."""

    types: Mapping[str, pl.DataType | type[pl.DataType]]
    about: Mapping[str, str]


class CheckResult(NamedTuple):
    """Whether a check passes, numbers for its metadata, and what is wrong, if it is known."""

    passed: bool
    metadata: Metadata
    problem: str = ""


def image(name: str, uri: str) -> Markdown:
    """The image with a data URI; see :mod:`tts_assets.core.metadata`."""
    return Markdown(f"![{name}]({uri})")


def embedded(page: Path) -> Markdown:
    """A Markdown file with the PNG images beside it, to which it refers by name."""
    text = page.read_text()
    for plot in sorted(page.parent.glob("*.png")):
        uri = base64.b64encode(plot.read_bytes()).decode()
        text = text.replace(f"({plot.name})", f"(data:image/png;base64,{uri})")
    return Markdown(text)


def literal(text: str) -> str:
    """A text as Markdown shows it on one line: marks and HTML are escaped.

    Names, licences and transcripts come from corpora and may be ``<laugh>``, ``a|b`` or ``*``.
    """
    return MARKS.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def table_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table, with all cells :func:`literal`."""
    return f"| {' | '.join(map(literal, cells))} |"


def csv_cell(text: str) -> str:
    """A text for a CSV file that spreadsheets do not run as a formula (OWASP, CSV injection)."""
    return f"'{text}" if text.startswith(FORMULA) else text


def markdown_table(rows: pl.DataFrame, longest: int = 80) -> Markdown:
    """All rows and columns as a table; texts are cut after ``longest`` characters, and escaped."""

    def cell(text: str) -> str:
        return literal(text if len(text) <= longest else f"{text[:longest]}…")

    rows = rows.with_columns(cs.string().map_elements(cell, return_dtype=pl.String))
    with pl.Config(
        tbl_formatting="MARKDOWN",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_width_chars=1000,
        tbl_cols=-1,
        tbl_rows=-1,
        fmt_str_lengths=10 * longest,
    ):
        return Markdown(str(rows))


def column_schema(
    types: Mapping[str, pl.DataType | type[pl.DataType]], about: Mapping[str, str]
) -> dict[str, Columns]:
    """Metadata with the :class:`Columns` of a published table, for the UI's catalog."""
    return {"dagster/column_schema": Columns(types, about)}


def set_aside_reasons(folder: Path) -> dict[str, int]:
    """The number of records by reason in the ``set_aside.jsonl`` of an artifact."""
    return count_reasons(read_set_aside(folder / SET_ASIDE_FILE))


def existing(name: str, path: Path) -> dict[str, Path]:
    """Metadata with a file that not every artifact has; empty without it."""
    return {name: path} if path.is_file() else {}


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


def curves(
    records: Sequence[Mapping[str, float]],
    panels: Sequence[Mapping[str, str]],
    *,
    x_label: str,
    y_label: str = "",
) -> str:
    """Line plots over ``step``, one panel beside the other, as a PNG of about 15 kB.

    Each of ``panels`` maps keys of the records to labels of lines. Records without a key are
    skipped.
    """
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), dpi=80, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key, label in panel.items():
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if axes.lines:  # a panel is empty if, for example, the weight of the KL term is 0
            axes.legend()
    return _data_uri(figure)


def bars(shares: Mapping[str, float], *, x_label: str) -> str:
    """Horizontal bars of ``shares`` (fractions) in per cent, as a PNG of about 8 kB."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.5 + 0.4 * len(shares)), dpi=80, layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(list(shares), [100 * share for share in shares.values()], color="#1f6b58")
    axes.bar_label(drawn, fmt="%.1f %%", padding=4)
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    return _data_uri(figure)


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal ``width``. The first bin starts at ``low``."""

    low: float
    width: float
    counts: Sequence[int]


def histograms(panels: Mapping[str, Mapping[str, Histogram]]) -> str:
    """Outlines of histograms as a PNG, one panel per quantity.

    Keys of ``panels`` are quantities with their unit. All histograms of a panel have equal bins.
    """
    from matplotlib.figure import Figure

    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * rows), dpi=80, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (quantity, named) in zip(axes, panels.items(), strict=False):
        for name, bins in named.items():
            edges = [bins.low + bins.width * index for index in range(len(bins.counts) + 1)]
            panel.stairs(bins.counts, edges, label=name)
        panel.set_xlabel(quantity)
        panel.set_yticks([])
        panel.legend(fontsize="small")
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    return _data_uri(figure)


def histogram(values: Sequence[float], *, x_label: str, y_label: str) -> str:
    """A histogram of ``values`` with 20 bins, as a PNG of about 8 kB."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=20, color="#1f6b58", rwidth=0.92)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.locator_params(axis="y", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    return _data_uri(figure)


def spectrograms(clips: Mapping[str, tuple[NDArray[np.float32], int]]) -> str:
    """Spectrograms of clips, one below the other on common axes, as a PNG.

    ``clips`` maps names to samples of shape (samples,) and their rate in Hz. Windows are 32 ms,
    the hop is 8 ms, and the range is 80 dB.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.3 * len(clips)), dpi=72, layout="constrained")
    top = max(rate for _, rate in clips.values()) / 2000
    rows = figure.subplots(len(clips), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, (wave, rate)) in zip(rows, clips.items(), strict=True):
        size = round(0.032 * rate)
        scaled = wave + np.float32(1e-6)  # digital silence would be log(0)
        axes.specgram(scaled, size, rate / 1000, noverlap=size * 3 // 4, cmap="magma")
        image = axes.images[0]
        loudest = float(image.get_array().max())
        image.set_clim(loudest - 80, loudest)
        axes.set_ylim(0, top)
        axes.set_ylabel("kHz")
        axes.set_title(name, fontsize="small", loc="left")
    rows[-1].set_xlabel("ms")
    return _data_uri(figure)


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
