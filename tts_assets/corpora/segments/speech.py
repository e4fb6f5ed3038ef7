"""Where somebody speaks (silero-vad), and how loud each hundredth of a second is.

The weights are those of silero-vad 6 that ``faster-whisper`` brings with it, run by onnxruntime:
the package ``silero-vad`` would set torch's threads for the whole process when it is imported.

How loud a clip is, and the gain that makes it as loud as wished: EBU R128, by FFmpeg.

The filter ``ebur128`` measures integrated loudness (ITU-R BS.1770-4, gated) and true peak. The
gain is one factor for the whole clip: nothing is compressed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
import av.error
import av.filter
import numpy as np
from numpy.typing import NDArray

from tts_assets.core.audio import Wave

RATE = 16_000  # Hz; silero-vad and Whisper hear nothing else
SHORTEST_SPEECH = 0.06  # s; two frames of silero-vad, less is a click
HOP, WIDTH = 160, 480  # samples: a level every 10 ms, of 30 ms
SILENCE = -100.0  # dB of digital zero
REACH = 0.2  # s; silero-vad begins up to 0.2 s late and ends up to 0.2 s early
NOISE_VARIES = 1.5  # dB from one 30 ms to another
ABOVE_FLOOR = 6.0  # dB over the quietest of a pause: still speech, which fades out
BELOW_SPEECH = 45.0  # dB under the loudest of a stretch: nobody hears it


@dataclass(frozen=True)
class Stretch:
    """From ``start`` to ``end``, in seconds of the recording."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def overlap(self, other: Stretch) -> float:
        """Seconds that both share; negative: how far they are apart."""
        return min(self.end, other.end) - max(self.start, other.start)


def find_speech(wave: Wave, threshold: float, pause: float) -> list[Stretch]:
    """Stretches of speech with at least ``pause`` seconds between them; ``wave`` at 16 kHz."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps  # a second to import

    options = VadOptions(
        threshold=threshold,
        min_speech_duration_ms=round(1000 * SHORTEST_SPEECH),
        min_silence_duration_ms=round(1000 * pause),
        speech_pad_ms=0,
    )
    found = get_speech_timestamps(wave, options, RATE)
    return [Stretch(part["start"] / RATE, part["end"] / RATE) for part in found]


class Levels:
    """The level of a wave at 16 kHz in dB, every 10 ms."""

    def __init__(self, wave: Wave) -> None:
        energy = np.cumsum(np.square(wave, dtype=np.float64))
        centres = np.arange(0, len(wave), HOP)
        low = np.clip(centres - WIDTH // 2, 0, len(wave) - 1)
        high = np.clip(centres + WIDTH // 2, 0, len(wave) - 1)
        mean = (energy[high] - energy[low]) / np.maximum(high - low, 1)
        self.levels: NDArray[np.float64] = 10 * np.log10(np.maximum(mean, 10 ** (SILENCE / 10)))

    def of(self, stretch: Stretch) -> NDArray[np.float64]:
        """The levels within a stretch, at least one."""
        first = min(self._frame(stretch.start), len(self.levels) - 1)
        return self.levels[first : max(first + 1, self._frame(stretch.end))]

    def quietest(self, stretch: Stretch) -> float:
        """The time of the lowest level within a stretch; of levels that do not differ by more
        than noise does, the one nearest to the middle."""
        levels = self.of(stretch)
        low = np.flatnonzero(levels <= np.min(levels) + NOISE_VARIES)
        first = min(self._frame(stretch.start), len(self.levels) - 1)
        middle = len(levels) // 2
        return (first + int(low[np.argmin(np.abs(low - middle))])) * HOP / RATE

    @staticmethod
    def _frame(time: float) -> int:
        return round(time * RATE / HOP)


def clip_limits(
    speech: Sequence[Stretch], whole: Stretch, levels: Levels, margin: float
) -> list[Stretch]:
    """How far a clip of each stretch of speech may reach: until the speech has faded out, and
    ``margin`` seconds more, but not beyond the quietest moment of a pause that is shorter.

    ``whole``: the recording. Neighbours never overlap.
    """
    pauses = [
        _limits_in_pause(left, right, whole, levels, margin)
        for left, right in pairwise([None, *speech, None])
    ]
    return [Stretch(before[1], after[0]) for before, after in pairwise(pauses)]


def _limits_in_pause(
    left: Stretch | None, right: Stretch | None, whole: Stretch, levels: Levels, margin: float
) -> tuple[float, float]:
    """Where a clip that ends in this pause ends, and where one that begins in it begins."""
    pause = Stretch(left.end if left else whole.start, right.start if right else whole.end)
    if pause.seconds <= 0:
        return pause.start, pause.end
    inside = levels.of(pause)
    reach = round(REACH * RATE / HOP)
    floor = float(np.min(inside)) + ABOVE_FLOOR
    end, start = pause.start, pause.end
    if left:
        audible = max(floor, float(np.max(levels.of(left))) - BELOW_SPEECH)
        end += _leading(inside[:reach] > audible) * HOP / RATE
    if right:
        audible = max(floor, float(np.max(levels.of(right))) - BELOW_SPEECH)
        start -= _leading(inside[::-1][:reach] > audible) * HOP / RATE
    if left and right and end + margin > start - margin:
        quietest = levels.quietest(pause)
        return quietest, quietest
    return min(end + margin, pause.end), max(start - margin, pause.start)


def _leading(values: NDArray[np.bool_]) -> int:
    """How many values are true before the first that is not."""
    return len(values) if values.all() else int(np.argmin(values))


INTEGRATED, TRUE_PEAK = "lavfi.r128.I", "lavfi.r128.true_peak"
GATE = -70.0  # LUFS: what FFmpeg says where nothing is above R128's absolute gate


@dataclass(frozen=True)
class Loudness:
    """``integrated`` in LUFS, ``true_peak`` in dBTP."""

    integrated: float
    true_peak: float


def measure(wave: Wave, rate: int) -> Loudness | None:
    """Loudness of a mono wave, shape (samples,); None if it has none: under 0.4 s, or silent."""
    graph = av.filter.Graph()
    base = Fraction(1, rate)
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout="mono", time_base=base)
    meter = graph.add("ebur128", "metadata=1:peak=true")
    sink = graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = rate, base, 0
    source.push(frame)
    source.push(None)
    last: dict[str, str] = {}
    try:
        while True:  # each frame carries the measures of all up to it
            last = sink.pull().metadata or last
    except av.error.EOFError:
        pass
    peak = float(last.get(TRUE_PEAK, 0.0))
    integrated = float(last.get(INTEGRATED, "-inf"))
    if peak <= 0 or integrated <= GATE:
        return None
    return Loudness(integrated, 20 * math.log10(peak))


def gain_to(loudness: Loudness | None, target: float, highest_peak: float) -> float:
    """Decibels, to 0.01, to ``target`` LUFS, or less where the true peak allows no more."""
    if loudness is None:
        return 0.0
    gain = min(target - loudness.integrated, highest_peak - loudness.true_peak)
    return math.floor(100 * gain) / 100


def amplify(wave: Wave, gain_db: float) -> Wave:
    """The wave times a factor."""
    return wave if gain_db == 0 else (wave * 10 ** (gain_db / 20)).astype(wave.dtype)
