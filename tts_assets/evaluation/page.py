"""What the self-contained pages share: templates, players with embedded audio, marked words.

A clip as a small picture: time to the right, pitch upwards, loudness as ink.

Syntheses as files, and inside of pages.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from tts_assets.audio_models.wer import Interval, Span, match
from tts_assets.core.audio import Wave, resample, write_speech
from tts_assets.evaluation.results import SampleResult

RATE = 16_000
WINDOW, BANDS = 512, 64
COLUMNS = 240  # of the picture, whatever the clip's length
RANGE_DB = 60.0  # from the loudest down to white
LEVELS = 16  # of ink: 4 bits a pixel, 4 to 6 kB a picture


def spectrogram(wave: Wave, rate: int) -> str:
    """A PNG in a data URI, 240 x 64 pixels: mel bands from 0 to 8 kHz, ink on transparency.

    The clip must hold samples.
    """
    power = mel_power(resample(wave, rate, RATE) if rate != RATE else wave)
    decibels = 10 * np.log10(power + 1e-10)
    ink = np.clip((decibels - decibels.max()) / RANGE_DB + 1, 0, 1)
    pixels = np.round(ink[:, ::-1].T * (LEVELS - 1)).astype(np.uint8)
    image = Image.fromarray(pixels, mode="P")
    image.putpalette([0] * 3 * LEVELS)
    opacity = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=opacity, bits=4, optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def mel_power(wave: Wave) -> NDArray[np.float64]:
    """Power of 64 mel bands at 240 places of a clip at 16 kHz, (240, 64)."""
    from librosa.filters import mel

    padded = np.pad(wave.astype(np.float64), WINDOW // 2)
    starts = np.linspace(0, max(0, len(padded) - WINDOW), COLUMNS).round().astype(int)
    frames = np.stack([padded[start : start + WINDOW] for start in starts])
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    return spectrum @ mel(sr=RATE, n_fft=WINDOW, n_mels=BANDS).T.astype(np.float64)


OPUS_RATE = 48_000  # of Hz that Opus knows, the one that holds every codec's band
OPUS_BITS = 40_000  # a second: speech of 24 kHz without audible loss
PAGE_BYTES = 10_000_000  # of audio in a page, which must stay readable in a browser
ENCODED = 4 / 3  # bytes of base64 a byte


def write_flac(path: Path, wave: Wave, rate: int, comment: str = "") -> None:
    """16-bit FLAC: lossless from here on, half the size of WAV, played by every browser."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_speech(path, np.clip(wave, -1.0, 1.0), rate, comment, "FLAC")


def read_flac(path: Path) -> tuple[Wave, int]:
    wave, rate = soundfile.read(path, dtype="float32")
    return wave, rate


class Embedder:
    """Files as data URIs of one page: FLAC as they are while all fit, else Opus.

    Where Opus does not fit either, those that come last get none: ask for the worst first.
    ``comment`` takes the place of the files' own, which name the model.
    """

    def __init__(self, paths: Iterable[Path], comment: str | None = None) -> None:
        self.comment = comment
        self.lossless = sum(path.stat().st_size for path in paths) * ENCODED <= PAGE_BYTES
        self.left = PAGE_BYTES

    def __call__(self, path: Path) -> str | None:
        """The data URI of a FLAC file; None if the page is full."""
        if self.lossless:
            kind = "audio/flac"
            data = path.read_bytes() if self.comment is None else commented(path, self.comment)
        else:
            said = comment_of(path) if self.comment is None else self.comment
            kind, data = "audio/ogg", opus(*read_flac(path), said)
        uri = data_uri(data, kind)
        if len(uri) > self.left:
            self.left = 0
            return None
        self.left -= len(uri)
        return uri


def comment_of(path: Path) -> str:
    with soundfile.SoundFile(path) as file:
        comment: str = file.comment
    return comment


def commented(path: Path, comment: str) -> bytes:
    """The same 16-bit samples as FLAC with another comment, and nothing else."""
    samples, rate = soundfile.read(path, dtype="int16")
    buffer = io.BytesIO()
    write_speech(buffer, samples, rate, comment, "FLAC")
    return buffer.getvalue()


def opus(wave: Wave, rate: int, comment: str = "") -> bytes:
    """Ogg Opus, mono; the same samples give the same bytes (libsndfile draws a serial number)."""
    samples = np.clip(resample(wave, rate, OPUS_RATE), -1.0, 1.0)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=OPUS_RATE, layout="mono")
        stream.bit_rate = OPUS_BITS
        if comment:
            stream.metadata["comment"] = comment
        frame = av.AudioFrame.from_ndarray(
            np.round(samples * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = OPUS_RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


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
