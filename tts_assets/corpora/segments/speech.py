"""Voice activity and levels of recordings, and the loudness of clips.

Voice activity is found by silero-vad 6 with the weights that ``faster-whisper`` brings, run by
onnxruntime. The package ``silero-vad`` is not used: its import sets the number of torch threads of
the whole process. Loudness is integrated loudness with gating (ITU-R BS.1770-4, EBU R128) and true
peak, measured by FFmpeg's filter ``ebur128``.
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

RATE = 16_000  # Hz; the only rate of silero-vad and Whisper
SHORTEST_SPEECH = 0.06  # s; two frames of silero-vad, less is a click
HOP, WIDTH = 160, 480  # samples: a level every 10 ms over 30 ms
SILENCE = -100.0  # dB of digital zero
REACH = 0.2  # s; silero-vad begins up to 0.2 s late and ends up to 0.2 s early
NOISE_VARIES = 1.5  # dB between windows of 30 ms
ABOVE_FLOOR = 6.0  # dB above the quietest window of a pause: speech that fades out
BELOW_SPEECH = 45.0  # dB below the loudest window of an interval: inaudible
INTEGRATED, TRUE_PEAK = "lavfi.r128.I", "lavfi.r128.true_peak"
GATE = -70.0  # LUFS: FFmpeg's value where nothing exceeds the absolute gate of R128


@dataclass(frozen=True)
class Interval:
    """The time from ``start`` to ``end``, in seconds of the recording."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """The length."""
        return self.end - self.start

    def overlap(self, other: Interval) -> float:
        """Seconds that both share; if negative, their distance."""
        return min(self.end, other.end) - max(self.start, other.start)


def find_speech(wave: Wave, threshold: float, pause: float) -> list[Interval]:
    """Intervals of speech with at least ``pause`` seconds between them.

    ``wave`` has the shape (samples,) and 16 kHz; ``threshold`` is the speech probability, 0 to 1.
    """
    from faster_whisper.vad import VadOptions, get_speech_timestamps  # takes a second

    options = VadOptions(
        threshold=threshold,
        min_speech_duration_ms=round(1000 * SHORTEST_SPEECH),
        min_silence_duration_ms=round(1000 * pause),
        speech_pad_ms=0,
    )
    found = get_speech_timestamps(wave, options, RATE)
    return [Interval(part["start"] / RATE, part["end"] / RATE) for part in found]


class Levels:
    """The level of a wave (samples,) at 16 kHz, in dB, every 10 ms."""

    def __init__(self, wave: Wave) -> None:
        energy = np.cumsum(np.square(wave, dtype=np.float64))
        centres = np.arange(0, len(wave), HOP)
        low = np.clip(centres - WIDTH // 2, 0, len(wave) - 1)
        high = np.clip(centres + WIDTH // 2, 0, len(wave) - 1)
        mean = (energy[high] - energy[low]) / np.maximum(high - low, 1)
        self.levels: NDArray[np.float64] = 10 * np.log10(np.maximum(mean, 10 ** (SILENCE / 10)))

    def of(self, interval: Interval) -> NDArray[np.float64]:
        """The levels within an interval, shape (frames,), at least one."""
        first = min(self._frame(interval.start), len(self.levels) - 1)
        return self.levels[first : max(first + 1, self._frame(interval.end))]

    def quietest(self, interval: Interval) -> float:
        """The time in seconds of the lowest level within an interval.

        Levels that differ by no more than NOISE_VARIES count as equal; of these the one nearest
        to the middle is chosen.
        """
        levels = self.of(interval)
        low = np.flatnonzero(levels <= np.min(levels) + NOISE_VARIES)
        first = min(self._frame(interval.start), len(self.levels) - 1)
        middle = len(levels) // 2
        return (first + int(low[np.argmin(np.abs(low - middle))])) * HOP / RATE

    @staticmethod
    def _frame(time: float) -> int:
        return round(time * RATE / HOP)


def clip_limits(
    speech: Sequence[Interval], whole: Interval, levels: Levels, margin: float
) -> list[Interval]:
    """The interval of the clip of each interval of speech, in the same order.

    A clip ends ``margin`` seconds after the speech has faded out. In a shorter pause, it ends at
    the quietest moment, where the next clip begins. ``whole`` is the recording. Clips never
    overlap.
    """
    pauses = [
        _limits_in_pause(left, right, whole, levels, margin)
        for left, right in pairwise([None, *speech, None])
    ]
    return [Interval(before[1], after[0]) for before, after in pairwise(pauses)]


def _limits_in_pause(
    left: Interval | None, right: Interval | None, whole: Interval, levels: Levels, margin: float
) -> tuple[float, float]:
    """The end of the clip before the pause and the start of the clip after it."""
    pause = Interval(left.end if left else whole.start, right.start if right else whole.end)
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


@dataclass(frozen=True)
class Loudness:
    """``integrated`` in LUFS, ``true_peak`` in dBTP."""

    integrated: float
    true_peak: float


def measure(wave: Wave, rate: int) -> Loudness | None:
    """The loudness of a mono wave (samples,); None where it is silent or shorter than 0.4 s."""
    graph = av.filter.Graph()
    base = Fraction(1, rate)
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout="mono", time_base=base)
    ebur128 = graph.add("ebur128", "metadata=1:peak=true")
    sink = graph.add("abuffersink")
    source.link_to(ebur128)
    ebur128.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = rate, base, 0
    source.push(frame)
    source.push(None)
    last: dict[str, str] = {}
    try:
        while True:  # the last frame carries the values of the whole wave
            last = sink.pull().metadata or last
    except av.error.EOFError:
        pass
    peak = float(last.get(TRUE_PEAK, 0.0))
    integrated = float(last.get(INTEGRATED, "-inf"))
    if peak <= 0 or integrated <= GATE:
        return None
    return Loudness(integrated, 20 * math.log10(peak))


def gain_to(loudness: Loudness | None, target: float, highest_peak: float) -> float:
    """The gain in dB, rounded down to 0.01, that reaches ``target`` LUFS.

    It is limited so that the true peak stays below ``highest_peak`` dBTP.
    """
    if loudness is None:
        return 0.0
    gain = min(target - loudness.integrated, highest_peak - loudness.true_peak)
    return math.floor(100 * gain) / 100


def amplify(wave: Wave, gain_db: float) -> Wave:
    """The wave scaled by one factor; nothing is compressed."""
    return wave if gain_db == 0 else (wave * 10 ** (gain_db / 20)).astype(wave.dtype)
