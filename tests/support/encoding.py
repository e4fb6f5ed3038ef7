"""Audio files by FFmpeg's encoders, which write other headers than libsndfile."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from tts_assets.core.audio import Wave


def speech_like(rate: int = 16_000, seconds: float = 2.3, seed: int = 0) -> Wave:
    """A tone with the rhythm of syllables and a little noise, shape (samples,)."""
    time = np.arange(int(rate * seconds)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 180 * time) * np.sin(2 * np.pi * 3 * time)
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time))
    return (tone + noise).astype(np.float32)


def encode(
    path: Path,
    wave: Wave,
    rate: int,
    codec: str,
    form: str,
    options: dict[str, str] | None = None,
    quality: dict[str, str] | None = None,
) -> None:
    """Write a mono wave (samples,) with FFmpeg: ``options`` are of the container ``form``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=quality or {})
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.codec_context.format, "mono", rate)
        fifo = av.AudioFifo()
        for part in resampler.resample(frame):
            fifo.write(part)
        while part := fifo.read(stream.codec_context.frame_size or 1024, partial=True):
            part.pts = None
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def mp3(path: Path, wave: Wave, rate: int, *, xing: bool, vbr: str = "") -> None:
    """An mp3 by LAME, with or without the Xing header; ``vbr`` is a quality of 0 to 9."""
    options = {"write_xing": "1" if xing else "0"}
    encode(path, wave, rate, "libmp3lame", "mp3", options, {"q": vbr} if vbr else {})
