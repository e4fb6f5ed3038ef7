"""How loud a clip is, and the gain that makes it as loud as wished: EBU R128, by FFmpeg.

The filter ``ebur128`` measures integrated loudness (ITU-R BS.1770-4, gated) and true peak. The
gain is one factor for the whole clip: nothing is compressed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
import av.filter

from tts_assets.audio import Wave

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
