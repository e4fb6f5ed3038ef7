"""Measures the metrics of a corpus: ``python -m tts_assets.corpora.measure run.json`` or torchrun.

All results go into the cache, a few clips at a time: stopped, it goes on from there, with any
number of ranks. Audio that cannot be read is left to the filter, which names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tts_assets.cache import RecordCache
from tts_assets.corpora.config import MeasureProgram, Metric
from tts_assets.corpora.quality import Gauge, Wanted
from tts_assets.program import Run, load_config

BLOCK = 64  # clips a transaction of the cache: what a kill loses
ROWS = 8192  # read at a time


def wanted(path: Path, metrics: tuple[Metric, ...]) -> Iterator[list[Wanted]]:
    """The clips of a Parquet file (see :class:`MeasureProgram`), ROWS at a time."""
    rows = pl.scan_parquet(path)
    for part in rows.collect_batches(chunk_size=ROWS, maintain_order=True, engine="streaming"):
        yield [
            Wanted(
                Path(row["audio"]),
                row["audio_sha256"],
                row["language"],
                tuple(metric for metric in metrics if row[metric]),
            )
            for row in part.iter_rows(named=True)
        ]


def blocks(program: MeasureProgram, rank: int, ranks: int) -> Iterator[list[Wanted]]:
    """This rank's clips of which anything is wanted."""
    for part in wanted(program.clips, program.metrics):
        mine = [clip for clip in part[rank::ranks] if clip.metrics]
        for start in range(0, len(mine), BLOCK):
            yield mine[start : start + BLOCK]


def main(argv: list[str] | None = None) -> None:
    program = load_config(MeasureProgram, argv)
    with Run(program.run_dir) as run:
        run.init_distributed()
        cores = max(1, len(os.sched_getaffinity(0)) // run.world_size)
        gauge = Gauge(program.whisper, threads=cores, device=run.device.type)
        cache = RecordCache(program.cache)
        rows = pl.scan_parquet(program.clips)
        total = rows.filter(pl.any_horizontal(program.metrics)).select(pl.len()).collect().item()
        mine = blocks(program, run.rank, run.world_size)
        steps = -(-total // (BLOCK * run.world_size))
        for block in run.progress(mine, f"metrics of {BLOCK} clips", total=steps):
            gauge.measure(block, cache)
            if run.stop_requested:
                break
        if run.should_stop():
            run.stopped()
        run.finish({"clips": total})


if __name__ == "__main__":
    main()
