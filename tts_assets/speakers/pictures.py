"""The pictures of a report: DET curves, who is taken for whom, and the voices on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from tts_assets.speakers.verification import Errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_SPEAKERS = 20  # whose points have colours that can be told apart
SHOWN_NAMES = 40  # that fit beside a matrix
LEAST_ERROR = 1e-3  # where the axes of a DET curve begin
TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4)
NEIGHBOURS = 30  # perplexity of t-SNE, neighbours of UMAP; fewer where there are few voices


def det(curves: Mapping[str, Errors], path: Path) -> None:
    """Misses over false alarms, on the scale of the normal distribution."""
    figure = _figure(5, 5)
    axes = figure.subplots()
    ends = deviates([LEAST_ERROR, 0.5])
    axes.plot(ends, ends, color="#bbbbbb", linewidth=1)
    for name, found in curves.items():
        points = [
            deviates(np.clip(side, LEAST_ERROR, 0.6)) for side in (found.false_alarms, found.misses)
        ]
        axes.plot(*points, label=f"{name}: EER {100 * found.eer:.1f} %")
    places = deviates(TICKS)
    labels = [f"{100 * tick:g}" for tick in TICKS]
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    axes.set(xlim=ends, ylim=ends, xlabel="false alarms, %", ylabel="misses, %")
    axes.legend()
    figure.savefig(path)


def deviates(shares: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the normal distribution has these shares below."""
    return np.array([NormalDist().inv_cdf(share) for share in shares])


def matrix(names: Sequence[str], counts: NDArray[np.int64], path: Path) -> None:
    """Shares of each speaker's recordings by the speaker they are nearest to."""
    size = min(12.0, 3 + 0.25 * len(names))
    figure = _figure(size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    if len(names) <= SHOWN_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
        axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set(xlabel="nearest", ylabel="speaks")
    figure.savefig(path)


def plane(points: NDArray[np.floating], speakers: Sequence[str], path: Path) -> None:
    """Voices [n, 2] as dots, coloured by speaker."""
    from matplotlib import colormaps

    figure = _figure(8, 5.5)
    axes = figure.subplots()
    names = sorted(set(speakers))
    colours = colormaps["tab20"]
    for number, name in enumerate(names):
        mine = points[[speaker == name for speaker in speakers]]
        label = name if len(names) <= SHOWN_SPEAKERS else None
        axes.scatter(
            mine[:, 0], mine[:, 1], s=6, color=colours(number % SHOWN_SPEAKERS), label=label
        )
    axes.set_xticks([])
    axes.set_yticks([])
    if len(names) <= SHOWN_SPEAKERS:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    figure.savefig(path)


def tsne(voices: NDArray[np.float32], seed: int) -> NDArray[np.floating]:
    """Unit vectors [n, d] to points [n, 2] (van der Maaten and Hinton, 2008)."""
    perplexity = min(NEIGHBOURS, (len(voices) - 1) / 3)
    made = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    return np.asarray(made.fit_transform(voices))


def umap(voices: NDArray[np.float32], seed: int) -> NDArray[np.floating] | None:
    """Unit vectors [n, d] to points [n, 2] (McInnes et al., 2018); None without ``umap-learn``,
    the extra ``umap``."""
    if find_spec("umap") is None:
        return None
    from umap import UMAP

    neighbours = min(NEIGHBOURS, len(voices) - 1)
    made = UMAP(metric="cosine", n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(voices))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=80, layout="constrained")
