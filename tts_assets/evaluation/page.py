"""What the self-contained pages share: templates, players with embedded audio, marked words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from tts_assets.evaluation.clips import Embedder, read_flac
from tts_assets.evaluation.results import SampleResult
from tts_assets.evaluation.spectrogram import spectrogram
from tts_assets.hearing.text_match import Interval, Span, match

HERE = Path(__file__).parent
BARS = 96  # of a waveform picture: 0.7 kB a clip
BAR_HEIGHT = 28


@dataclass(frozen=True)
class Player:
    """A clip in the page: the file as a data URI, its outline as an SVG path, its spectrogram."""

    source: str
    outline: str
    seconds: float
    spectrogram: str


@dataclass(frozen=True)
class Heard:
    """One synthesis as the page shows it. ``spans`` is empty where no word is wrong."""

    sample: SampleResult
    player: Player | None
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class RangeMark:
    """A value and its interval on a scale, in percent of the scale's width."""

    value: float
    low: float
    width: float
    zero: float


def heard(folder: Path, sample: SampleResult, embed: Embedder) -> Heard:
    spans = match(sample.text, sample.heard, sample.language).spans
    player = player_of(folder / sample.audio, embed) if sample.audio else None
    return Heard(sample, player, spans if sample.word_errors else ())


def player_of(path: Path, embed: Embedder) -> Player | None:
    """None if the page is full."""
    source = embed(path)
    if source is None:
        return None
    wave, rate = read_flac(path)
    return Player(source, outline(wave), len(wave) / rate, spectrogram(wave, rate))


def outline(wave: NDArray[np.float32]) -> str:
    """Loudness in ``BARS`` vertical strokes around the middle, the loudest at full height."""
    pieces = np.array_split(wave, BARS)
    levels = [math.sqrt(float(np.mean(np.square(p)))) if len(p) else 0.0 for p in pieces]
    loudest = max(levels) or 1.0
    strokes = []
    for x, level in enumerate(levels):
        half = max(0.5, level / loudest * (BAR_HEIGHT / 2 - 1))
        strokes.append(f"M{3 * x + 1} {BAR_HEIGHT / 2 - half:.1f}v{2 * half:.1f}")
    return "".join(strokes)


def range_mark(value: float, interval: Interval, low: float, high: float) -> RangeMark:
    """Where ``value`` and its interval lie on a scale from ``low`` to ``high``."""

    def place(x: float) -> float:
        return round(100 * min(1.0, max(0.0, (x - low) / (high - low))), 2)

    start, stop = place(interval.low), place(interval.high)
    return RangeMark(place(value), start, round(stop - start, 2), place(0.0))


def scale_end(values: Sequence[float], step: float = 0.1) -> float:
    """The end of an axis from zero: the next whole ``step`` at or above all values."""
    return max(step, math.ceil(round(max(values) / step, 6)) * step)


def render(template: Path, **values: object) -> str:
    """A page from a template that may extend those beside this file, with style and script inside:
    no other resource."""
    style = Markup((HERE / "page.css").read_text())
    script = Markup((HERE / "page.js").read_text())
    found = environment().from_string(template.read_text())
    return found.render(style=style, script=script, **values)


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["percent"] = percent
    made.filters["points"] = points
    made.globals["bars"] = {"width": 3 * BARS - 1, "height": BAR_HEIGHT}
    return made


def percent(rate: float, digits: int = 1) -> str:
    return f"{100 * rate:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of rates in percentage points, with a sign that a reader can see."""
    text = f"{100 * difference:+.1f}"
    return text.replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")
