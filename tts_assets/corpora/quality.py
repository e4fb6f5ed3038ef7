"""Metrics of recordings, each measured once and cached by the digest of the audio.

| metric | meaning | source |
|---|---|---|
| ``dnsmos`` | DNSMOS P.835 overall, 1 to 5; the slowest, 0.2 s of CPU per clip | ``dnsmos.py`` |
| ``p808`` | DNSMOS P.808, 1 to 5 | ``dnsmos.py`` |
| ``snr`` | signal-to-noise ratio in dB, -20 to 100 | WADA-SNR (Kim & Stern, Interspeech 2008) |
| ``clipping`` | fraction of samples at full scale, in runs of two or more | |
| ``silence`` | fraction of 20 ms frames 40 dB below the loud frames (95th percentile) | |
| ``wer`` | WER of Whisper's transcript against the text | ``audio_models/transcription.py`` |

For ``wer`` the transcript is cached, because the text may change. Figures are rounded, so that the
last digits of another machine change nothing.

``python -m tts_assets.corpora.quality run.json`` (or torchrun) measures the clips of a corpus.
Results enter the cache a few clips at a time: a stopped program resumes there, with any number of
ranks. Unreadable audio is skipped; the filter reports it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tts_assets.audio_models.dnsmos import DnsmosScorer
from tts_assets.audio_models.whisper import spoken_language, whisper_identity
from tts_assets.core.audio import BrokenAudio, Clip, Wave, read_clip
from tts_assets.core.cache import RecordCache
from tts_assets.core.program import Run, load_config, one_thread
from tts_assets.corpora.config import MeasureProgram, Metric

if TYPE_CHECKING:
    from tts_assets.audio_models.transcription import Transcriber, TransformersTranscriber

EXPENSIVE: frozenset[Metric] = frozenset({"dnsmos", "p808", "wer"})  # worth a launched program
# The cached record of each metric and its version; raise it when its figures change.
RECORDS: Mapping[Metric, str] = {
    "dnsmos": "dnsmos.1",
    "p808": "p808.1",
    "snr": "signal.2",
    "clipping": "signal.2",
    "silence": "signal.2",
    "wer": "heard.1",
}
FULL_SCALE = 0.999  # 32,735 of 32,768
FRAME_SECONDS, LOUD_PERCENTILE, SILENT_DB = 0.02, 95, 40

# WADA-SNR: log E|x| - E log|x| of speech (its amplitude gamma-distributed, shape 0.4) in Gaussian
# noise, for every 5 dB from -20 to 100. Integrated numerically (test_quality.py).
WADA_DB = np.arange(-20, 101, 5)
# fmt: off
WADA = np.array([
    0.4094, 0.4098, 0.4121, 0.4238, 0.4618, 0.5436, 0.6673, 0.8123, 0.9558, 1.0847, 1.1941, 1.2842,
    1.3573, 1.4159, 1.4628, 1.5002, 1.5300, 1.5536, 1.5724, 1.5874, 1.5992, 1.6087, 1.6162, 1.6221,
    1.6268,
])
# fmt: on


@dataclass(frozen=True)
class MeasureRequest:
    """A clip and the metrics to measure."""

    audio: Path
    audio_sha256: str
    language: str
    metrics: tuple[Metric, ...]

    def keys(self, model: str) -> dict[str, Metric]:
        """The cache keys of the records, each with one of its metrics.

        ``model`` identifies the ASR model (``QualityMeasurer.model``).
        """
        found: dict[str, Metric] = {}
        for metric in self.metrics:
            kind = RECORDS[metric]
            if metric == "wer":
                kind += f":{model or 'tiny.en'}:{spoken_language(self.language)}"
            found[f"{kind}:{self.audio_sha256}"] = metric
        return found


class QualityMeasurer:
    """Measures clips; models are loaded on first use.

    ``model`` identifies ``whisper``: a folder is identified by the digest of its files, so that
    other weights in the same folder give new transcripts.
    """

    def __init__(self, whisper: str = "", *, threads: int = 1, device: str = "cpu") -> None:
        self.model, self._whisper, self._device = whisper_identity(whisper), whisper, device
        self._pool = ThreadPoolExecutor(threads)  # decoding and inference release the GIL
        self._transcribers: dict[str, Transcriber | TransformersTranscriber] = {}
        self._loading = Lock()

    def measure(
        self, clips: Sequence[MeasureRequest], cache: RecordCache
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The records of all clips by cache key, and the reason for unreadable audio by digest.

        Records that the cache lacks are measured and added to it.
        """
        keys = {clip: clip.keys(self.model) for clip in clips}
        known = cache.get(key for metrics in keys.values() for key in metrics)
        missing = {
            clip: {key: metric for key, metric in metrics.items() if key not in known}
            for clip, metrics in keys.items()
            if any(key not in known for key in metrics)
        }
        new: dict[str, Any] = {}
        unreadable: dict[str, str] = {}
        for clip, found in zip(missing, self._pool.map(self._open, missing.items()), strict=True):
            if isinstance(found, BrokenAudio):
                unreadable[clip.audio_sha256] = f"{found.reason}: {found.path}"
            else:
                new |= found
        if new:
            cache.put(new)
        return known | new, unreadable

    def _open(
        self, item: tuple[MeasureRequest, Mapping[str, Metric]]
    ) -> dict[str, Any] | BrokenAudio:
        request, missing = item
        try:
            clip = read_clip(request.audio)
        except BrokenAudio as error:
            return error
        return {key: self._record(metric, clip, request) for key, metric in missing.items()}

    def _record(self, metric: Metric, clip: Clip, request: MeasureRequest) -> Any:
        if metric == "wer":
            return self._transcriber(request.language)([(clip.wave, clip.rate)])[0]
        if metric in ("dnsmos", "p808"):
            audio = self._dnsmos.prepare(clip.wave, clip.rate)
            if audio is None:
                return None
            scorer = self._dnsmos
            return round(scorer.p808(audio) if metric == "p808" else scorer.p835(audio)[2], 2)
        return {
            "snr": rounded(wada_snr(clip.wave), 1),
            "clipping": rounded(clipping(clip.wave), 5),
            "silence": rounded(silence(clip.wave, clip.rate), 3),
        }

    @cached_property
    def _dnsmos(self) -> DnsmosScorer:
        return DnsmosScorer()

    def _transcriber(self, language: str) -> Transcriber | TransformersTranscriber:
        tag = spoken_language(language)
        from tts_assets.audio_models.transcription import open_transcriber

        with self._loading:
            if tag not in self._transcribers:
                # One clip at a time on one thread: a transcript depends on its clip alone.
                self._transcribers[tag] = open_transcriber(
                    self._whisper, language=tag, batch_size=1, threads=1, device=self._device
                )
            return self._transcribers[tag]


def wada_snr(wave: Wave) -> float | None:
    """WADA-SNR in dB of speech (samples,); None for digital silence.

    Kim & Stern, "Robust Signal-to-Noise Ratio Estimation Based on Waveform Amplitude Distribution
    Analysis", Interspeech 2008.
    """
    loud = np.abs(wave[wave != 0], dtype=np.float64)  # digital silence is neither speech nor noise
    if not len(loud):
        return None
    statistic = np.log(loud.mean()) - np.log(loud).mean()
    return float(np.interp(statistic, WADA, WADA_DB))


def clipping(wave: Wave) -> float:
    """The fraction of samples at full scale next to another one; a single one is a peak.

    ``wave`` has the shape (samples,).
    """
    at_top = np.abs(wave) >= FULL_SCALE
    pairs = at_top[1:] & at_top[:-1]
    in_runs = np.zeros(len(wave), dtype=bool)
    in_runs[1:] |= pairs
    in_runs[:-1] |= pairs
    return float(in_runs.mean())


def silence(wave: Wave, rate: int) -> float | None:
    """The fraction of frames far below the loud frames of a wave (samples,).

    None for a clip shorter than one frame of 20 ms.
    """
    size = round(FRAME_SECONDS * rate)
    frames = wave[: len(wave) // size * size].reshape(-1, size).astype(np.float64)
    if not len(frames):
        return None
    power = np.square(frames).mean(axis=1)
    loud = np.percentile(power, LOUD_PERCENTILE)
    return float((power <= loud * 10 ** (-SILENT_DB / 10)).mean())


def word_error_rate(text: str, heard: str, language: str) -> float | None:
    """The WER of ``heard`` against ``text``; None if ``text`` has no words."""
    from tts_assets.audio_models.wer import match, normalize_for_match

    tag = spoken_language(language)
    if not normalize_for_match(text, tag):
        return None
    return round(match(text, heard, tag).wer, 4)


def rounded(value: float | None, digits: int) -> float | None:
    """``value`` rounded to ``digits``; None stays None."""
    return None if value is None else round(value, digits)


BLOCK = 64  # clips per transaction of the cache; a kill loses no more
ROWS = 8192  # read at a time


def read_requests(path: Path, metrics: tuple[Metric, ...]) -> Iterator[list[MeasureRequest]]:
    """The clips of a Parquet file (see :class:`MeasureProgram`), ROWS at a time."""
    rows = pl.scan_parquet(path)
    for part in rows.collect_batches(chunk_size=ROWS, maintain_order=True, engine="streaming"):
        yield [
            MeasureRequest(
                Path(row["audio"]),
                row["audio_sha256"],
                row["language"],
                tuple(metric for metric in metrics if row[metric]),
            )
            for row in part.iter_rows(named=True)
        ]


def blocks(program: MeasureProgram, rank: int, ranks: int) -> Iterator[list[MeasureRequest]]:
    """The clips of this rank for which any metric is requested, in blocks."""
    for part in read_requests(program.clips, program.metrics):
        mine = [clip for clip in part[rank::ranks] if clip.metrics]
        for start in range(0, len(mine), BLOCK):
            yield mine[start : start + BLOCK]


def main(argv: list[str] | None = None) -> None:
    """Run the program; ``argv`` is the path of its configuration."""
    program = load_config(MeasureProgram, argv)
    with one_thread(), Run(program.run_dir) as run:
        run.init_distributed()
        cores = max(1, len(os.sched_getaffinity(0)) // run.world_size)
        measurer = QualityMeasurer(program.whisper, threads=cores, device=run.device.type)
        cache = RecordCache(program.cache)
        rows = pl.scan_parquet(program.clips)
        total = rows.filter(pl.any_horizontal(program.metrics)).select(pl.len()).collect().item()
        mine = blocks(program, run.rank, run.world_size)
        steps = -(-total // (BLOCK * run.world_size))
        for block in run.progress(mine, f"metrics of {BLOCK} clips", total=steps):
            measurer.measure(block, cache)
            if run.stop_requested:
                break
        if run.should_stop():
            run.stopped()
        run.finish({"clips": total})


if __name__ == "__main__":
    main()
