"""How the values of a column are spread over the utterances: a histogram as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tts_assets.evaluation.metrics.metric import Column
from tts_assets.evaluation.results import SampleResult

CLASSES = 20
WIDTH, HEIGHT = 240, 64


@dataclass(frozen=True)
class Bar:
    """A class of values: its place in the picture, and what it says in words."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Distribution:
    """``bars`` of a picture of WIDTH x HEIGHT; ``median`` is a place in it."""

    column: Column
    bars: tuple[Bar, ...]
    low: str
    high: str
    median: float
    label: str


def distributions(samples: Sequence[SampleResult], columns: Iterable[Column]) -> list[Distribution]:
    """Of each column that is shown and has values that differ."""
    found = []
    for column in columns:
        values = [s.values[column.name] for s in samples if column.name in s.values]
        if column.shown and len(set(values)) > 1:
            found.append(distribution(values, column))
    return found


def distribution(values: Sequence[float], column: Column) -> Distribution:
    counts, edges = np.histogram(values, bins=CLASSES)
    low, high, middle = float(edges[0]), float(edges[-1]), float(np.median(values))
    step = WIDTH / CLASSES
    tallest = int(counts.max())
    bars = tuple(
        Bar(
            x=round(place * step + 0.5, 1),
            y=round(HEIGHT - HEIGHT * count / tallest, 1),
            width=step - 1,
            height=round(HEIGHT * count / tallest, 1),
            label=f"{count} from {column.text(edges[place])} to {column.text(edges[place + 1])}",
        )
        for place, count in enumerate(counts.tolist())
        if count
    )
    label = (
        f"{column.title} of {len(values)} syntheses: {column.text(low)} to {column.text(high)}, "
        f"half of them below {column.text(middle)}"
    )
    place = round(WIDTH * (middle - low) / (high - low), 1)
    return Distribution(column, bars, column.text(low), column.text(high), place, label)
