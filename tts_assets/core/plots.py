"""Plots as PNG data URIs, for Markdown metadata in Dagster and for reports."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL_INCHES = (5.0, 3.0)


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
