"""Parts of the HTML pages: templates, players, scales, the summary of a comparison.

Style, script and images are inside of a page. The audio of a comparison and of a blind test is
inside, too, so that the page can be sent alone. A report loads its audio from the folder ``audio``
beside it when a player starts.

The summary has sentences about the differences, the most important first. It is derived from the
figures alone. Every difference in it has an interval that excludes zero, is visible with the digits
that the page shows, and is at least ``Column.smallest``. The intervals of one comparison are
corrected for their number by Bonferroni: with N of them, each has the level 1 - 0.05 / N, and all
hold together with a probability of at least 95 %. Source: Dunn, Multiple comparisons among means
(JASA 56, 1961). It is conservative where metrics depend on each other, as WER and CER do.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from tts_assets.audio_models.pitch import load_librosa
from tts_assets.audio_models.wer import Interval, Span, match
from tts_assets.core.audio import Wave, resample, write_speech
from tts_assets.evaluation.metrics import Column
from tts_assets.evaluation.results import FEWEST_TEXTS, Difference, SampleResult

HERE = Path(__file__).parent
PAGE_BYTES = 10_000_000  # of audio in a page; larger pages are slow in browsers
BASE64_RATIO = 4 / 3  # bytes of base64 for each byte
OPUS_RATE = 48_000  # Hz; of the rates of Opus, the one that contains the band of every codec
OPUS_BITS = 40_000  # bit/s; transparent for speech at 24 kHz
OUTLINE_BARS = 96  # of a waveform; 0.7 kB for each clip
OUTLINE_HEIGHT = 28

SPECTROGRAM_RATE = 16_000
WINDOW, BANDS = 512, 64
COLUMNS = 240  # of the spectrogram, whatever the duration of the clip
RANGE_DB = 60.0  # from the maximum down to white
LEVELS = 16  # of gray: 4 bits for each pixel, 4 to 6 kB for an image
WER = "wer"
SUMMARY_COLUMNS = (
    *(WER, "speaker_similarity", "dnsmos_p808", "utmos", "truncated", "repeated"),
    *("speaking_rate", "duration_ratio", "f0_median", "f0_spread"),
)
PHRASES = {"better": "is better in", "worse": "is worse in", "other": "differs in"}


@dataclass(frozen=True)
class Player:
    """A clip in the page: waveform as an SVG path, spectrogram as a PNG.

    ``source``: a data URI, or the path of the audio file relative to the page.
    """

    source: str
    outline: str
    seconds: float
    spectrogram: str


@dataclass(frozen=True)
class SynthesisView:
    """A synthesis as the page shows it.

    ``spans`` and ``errors``, the number of each kind of error, are empty if the transcript has
    no error.
    """

    sample: SampleResult
    player: Player | None
    spans: tuple[Span, ...]
    errors: str


@dataclass(frozen=True)
class RangeMark:
    """A value and its interval on a scale, in percent of the scale's width."""

    value: float
    low: float
    width: float
    zero: float


class Embedder:
    """Converts audio files to data URIs of one page: FLAC if all files fit, else Opus.

    If Opus does not fit either, the last files get none: convert the most important ones first.
    ``comment`` replaces the comments of the files, which name the model.
    """

    def __init__(self, paths: Iterable[Path], comment: str | None = None) -> None:
        self.comment = comment
        self.lossless = sum(path.stat().st_size for path in paths) * BASE64_RATIO <= PAGE_BYTES
        self.left = PAGE_BYTES

    def __call__(self, path: Path) -> str | None:
        """The data URI of a FLAC file; None if the page is full."""
        if self.lossless:
            kind = "audio/flac"
            data = path.read_bytes() if self.comment is None else commented(path, self.comment)
        else:
            comment = comment_of(path) if self.comment is None else self.comment
            kind, data = "audio/ogg", opus(*read_flac(path), comment)
        uri = data_uri(data, kind)
        if len(uri) > self.left:
            self.left = 0
            return None
        self.left -= len(uri)
        return uri


def linked(path: Path) -> str:
    """The URL of an audio file of a report, relative to the report's page."""
    return quote(f"{path.parent.name}/{path.name}")


def synthesis_view(
    folder: Path, sample: SampleResult, source: Callable[[Path], str | None]
) -> SynthesisView:
    """A synthesis of the report in ``folder``, with its player and its errors.

    ``source``: :func:`linked` or an :class:`Embedder`.
    """
    player = player_of(folder / sample.audio, source) if sample.audio else None
    if not sample.word_errors:
        return SynthesisView(sample, player, (), "")
    aligned = match(sample.text, sample.heard, sample.language)
    return SynthesisView(sample, player, aligned.spans, aligned.errors_by_kind)


def player_of(path: Path, source: Callable[[Path], str | None]) -> Player | None:
    """The player of a FLAC file; None if the page is full."""
    url = source(path)
    if url is None:
        return None
    wave, rate = read_flac(path)
    return Player(url, outline(wave), len(wave) / rate, spectrogram(wave, rate))


def outline(wave: NDArray[np.float32]) -> str:
    """The RMS level of a wave (samples,) as an SVG path of vertical lines."""
    pieces = np.array_split(wave, OUTLINE_BARS)
    levels = [math.sqrt(float(np.mean(np.square(p)))) if len(p) else 0.0 for p in pieces]
    loudest = max(levels) or 1.0
    lines = []
    for x, level in enumerate(levels):
        half = max(0.5, level / loudest * (OUTLINE_HEIGHT / 2 - 1))
        lines.append(f"M{3 * x + 1} {OUTLINE_HEIGHT / 2 - half:.1f}v{2 * half:.1f}")
    return "".join(lines)


def spectrogram(wave: Wave, rate: int) -> str:
    """A mel spectrogram from 0 to 8 kHz as a PNG of 240 x 64 pixels in a data URI.

    The clip must have samples.
    """
    at_rate = resample(wave, rate, SPECTROGRAM_RATE) if rate != SPECTROGRAM_RATE else wave
    decibels = 10 * np.log10(mel_power(at_rate) + 1e-10)
    opacity = np.clip((decibels - decibels.max()) / RANGE_DB + 1, 0, 1)
    pixels = np.round(opacity[:, ::-1].T * (LEVELS - 1)).astype(np.uint8)
    image = Image.fromarray(pixels, mode="P")
    image.putpalette([0] * 3 * LEVELS)
    transparency = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=transparency, bits=4, optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def mel_power(wave: Wave) -> NDArray[np.float64]:
    """Power of a clip at 16 kHz in 64 mel bands at 240 positions, (240, 64)."""
    mel = load_librosa().filters.mel
    padded = np.pad(wave.astype(np.float64), WINDOW // 2)
    starts = np.linspace(0, max(0, len(padded) - WINDOW), COLUMNS).round().astype(int)
    frames = np.stack([padded[start : start + WINDOW] for start in starts])
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    return spectrum @ mel(sr=SPECTROGRAM_RATE, n_fft=WINDOW, n_mels=BANDS).T.astype(np.float64)


def write_flac(path: Path, wave: Wave, rate: int, comment: str = "") -> None:
    """Write a wave (samples,) as 16-bit FLAC, which is lossless and which every browser plays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_speech(path, np.clip(wave, -1.0, 1.0), rate, comment, "FLAC")


def read_flac(path: Path) -> tuple[Wave, int]:
    """The wave, float32 (samples,), and its sample rate in Hz."""
    wave, rate = soundfile.read(path, dtype="float32")
    return wave, rate


def comment_of(path: Path) -> str:
    """The comment of an audio file."""
    with soundfile.SoundFile(path) as file:
        comment: str = file.comment
    return comment


def commented(path: Path, comment: str) -> bytes:
    """The same 16-bit samples as FLAC with another comment and no other metadata."""
    samples, rate = soundfile.read(path, dtype="int16")
    buffer = io.BytesIO()
    write_speech(buffer, samples, rate, comment, "FLAC")
    return buffer.getvalue()


def opus(wave: Wave, rate: int, comment: str = "") -> bytes:
    """A wave (samples,) as mono Ogg Opus; equal samples give equal bytes.

    libsndfile would write a random serial number, and therefore other bytes every time.
    """
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
    """``data`` of the MIME type ``kind`` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def range_mark(value: float, interval: Interval, low: float, high: float) -> RangeMark:
    """``value`` and its interval on a scale from ``low`` to ``high``."""

    def position(x: float) -> float:
        return round(100 * min(1.0, max(0.0, (x - low) / (high - low))), 2)

    start, stop = position(interval.low), position(interval.high)
    return RangeMark(position(value), start, round(stop - start, 2), position(0.0))


def scale_end(values: Sequence[float], step: float = 0.1) -> float:
    """The end of an axis that starts at zero: the next multiple of ``step``."""
    return max(step, math.ceil(round(max(values, default=0.0) / step, 6)) * step)


def render(template: Path, **values: object) -> str:
    """A page from a template, which may extend the templates beside this file."""
    style = Markup((HERE / "page.css").read_text())
    script = Markup((HERE / "page.js").read_text())
    found = environment().from_string(template.read_text())
    return found.render(style=style, script=script, **values)


@cache
def environment() -> Environment:
    """Jinja's environment with the filters and globals of all templates."""
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
    made.globals["bars"] = {"width": 3 * OUTLINE_BARS - 1, "height": OUTLINE_HEIGHT}
    return made


def percent(rate: float, digits: int = 1) -> str:
    """A fraction in per cent."""
    return f"{100 * rate:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with a typographic minus sign."""
    text = f"{100 * difference:+.1f}"
    return text.replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


@dataclass(frozen=True)
class Changes:
    """How a model differs from a baseline: by column on all texts, and in WER by category."""

    baseline: str
    candidate: str
    columns: Mapping[str, Difference]
    categories: Mapping[str, Difference]


def summary(
    pairs: Mapping[tuple[str, str], Changes],
    models: Sequence[str],
    columns: Sequence[Column],
    decisive: Sequence[str] = (),
) -> list[str]:
    """Sentences that compare each model with the first model, and with the one before it.

    ``decisive``: categories of the suite that decide on promotions. They come first.
    """
    shown = [column for name in SUMMARY_COLUMNS for column in columns if column.name == name]
    sentences = []
    for index, candidate in enumerate(models[1:], start=1):
        for baseline in dict.fromkeys([models[0], models[index - 1]]):
            sentences += pair_summary(pairs[baseline, candidate], shown, decisive)
    return sentences


def pair_summary(changes: Changes, columns: Sequence[Column], decisive: Sequence[str]) -> list[str]:
    """Sentences about one pair: the decisive categories, what differs, and what may be chance."""
    by_name = {column.name: column for column in columns}
    first = [name for name in decisive if name in changes.categories and WER in by_name]
    sentences = [decisive_sentence(changes, name, by_name[WER]) for name in first]
    found: list[tuple[str, Column, Difference]] = [
        (f"WER of {name}", by_name[WER], change)
        for name, change in changes.categories.items()
        if name not in first and WER in by_name
    ]
    found += [
        (title_of(column), column, changes.columns[column.name])
        for column in columns
        if column.name in changes.columns
    ]
    certain = [one for one in found if is_relevant(one[1], one[2])]
    for direction, phrase in PHRASES.items():
        each = [
            f"{title}: {described(column, change)}"
            for title, column, change in certain
            if direction_of(column, change) == direction
        ]
        if each:
            listing = "; ".join(each)
            sentences.append(
                f"{changes.candidate} {phrase} {listing}, compared with {changes.baseline}."
            )
    return sentences + others(changes, [one[0] for one in found if one not in certain])


def decisive_sentence(changes: Changes, category: str, wer: Column) -> str:
    """The WER of a category that decides on promotions, whether it changed or not."""
    change = changes.categories[category]
    start = f"{category}, which decides on promotion: {changes.candidate}"
    values = f"WER {wer.text(change.candidate)} instead of {wer.text(change.baseline)}"
    if change.texts < FEWEST_TEXTS:
        return f"{start} has {values}; {change.texts} texts are too few for an interval."
    if is_relevant(wer, change):
        return (
            f"{start} is {direction_of(wer, change)}, {described(wer, change, 'WER ')}, compared "
            f"with {changes.baseline}."
        )
    interval = wer.signed_range(change.low, change.high)
    return f"{start} does not differ significantly, {values} (interval {interval})."


def others(changes: Changes, titles: Sequence[str]) -> list[str]:
    """The sentence about everything that does not differ enough; none if ``titles`` is empty."""
    if not titles:
        return []
    texts = max(change.texts for change in changes.columns.values())
    if texts < FEWEST_TEXTS:
        return [
            f"{texts} texts are too few to compare {changes.candidate} and {changes.baseline}: "
            f"intervals need {FEWEST_TEXTS}."
        ]
    return [
        f"With {texts} texts, {changes.candidate} and {changes.baseline} have no significant "
        f"difference that matters in {listed(titles)}."
    ]


def is_relevant(column: Column, change: Difference) -> bool:
    """Whether a difference is certain, visible with the shown digits, and large enough."""
    visible = column.number(change.candidate) != column.number(change.baseline)
    large = abs(change.difference) >= column.smallest
    return change.texts >= FEWEST_TEXTS and change.certain and visible and large


def direction_of(column: Column, change: Difference) -> str:
    """``better``, ``worse``, or ``other`` if the column has no better direction."""
    if not column.better:
        return "other"
    return "better" if (change.difference < 0) == (column.better == "low") else "worse"


def described(column: Column, change: Difference, name: str = "") -> str:
    """A difference in words."""
    return (
        f"{name}{column.text(change.candidate)} instead of {column.text(change.baseline)} "
        f"(interval of the difference: {column.signed_range(change.low, change.high)})"
    )


def about_intervals(number: int) -> str:
    """The sentence that says what the intervals are."""
    return (
        f"Intervals hold together at 95 %: they are corrected for their number, {number} "
        "(Bonferroni)."
    )


def title_of(column: Column) -> str:
    """The title within a sentence: in lower case, but not acronyms such as WER."""
    first, *rest = column.title.split(" ")
    return " ".join([first if first.isupper() else first.lower(), *rest])


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
