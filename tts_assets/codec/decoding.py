"""Reads audio ahead of the encoder: several files at once, at bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tts_assets.accounting import SetAside
from tts_assets.artifacts import sha256_file
from tts_assets.audio import BrokenAudio, Wave, read_wave
from tts_assets.corpora.samples import Sample

AHEAD_SECONDS = 600.0  # of audio that waits for the encoder: 38 MB at 16 kHz


def read_ahead(samples: Iterable[Sample], rate: int, workers: int) -> Iterator[Wave | SetAside]:
    """Of each sample, in the order given, the waveform (samples,) at ``rate`` Hz, or the reason
    why it has none."""
    waiting: deque[tuple[Sample, Future[Wave | SetAside]]] = deque()
    seconds = 0.0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for sample in samples:
            while waiting and seconds + sample.duration > AHEAD_SECONDS:
                first, future = waiting.popleft()
                seconds -= first.duration
                yield future.result()
            waiting.append((sample, pool.submit(read_sample, sample, rate)))
            seconds += sample.duration
        for _, future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_sample(sample: Sample, rate: int) -> Wave | SetAside:
    """The waveform at ``rate`` Hz, if the file is the one that was indexed: other bytes would go
    into the codes of the digest that the sample names, and from there into later shards."""
    path = Path(sample.wav_path)
    try:
        wave = read_wave(path, rate)
        indexed = sample.original_data.get("audio_sha256")
        changed = indexed is not None and sha256_file(path) != indexed
    except BrokenAudio as error:
        return SetAside(sample.id, error.reason, error.detail or str(error.path))
    except OSError as error:
        return SetAside(sample.id, "not readable", f"{path}: {error.strerror}")
    if changed:
        detail = f"{path}: materialize raw_corpus and what follows again"
        return SetAside(sample.id, "changed since it was indexed", detail)
    return wave
