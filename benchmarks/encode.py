"""Encoding speed for 20 minutes of real speech: batches by length, as listed, one by one.

    OMP_NUM_THREADS=1 python benchmarks/encode.py

measures the vendored codec on the demo corpus, which is decoded in advance. It prints a Markdown
table with the shortest time of each method. Batches of both kinds have the same budgets of codes,
including padding. *By length* is the method of ``codec_shards`` within a shard, which encodes some
clips again; its codes must equal those of one by one. *As listed* is masked, too, but encodes no
clip again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tts_assets.codec.config import BATCH_TOKENS
from tts_assets.codec.model import BatchEncoder, Codec, Codes, Wave
from tts_assets.core.accounting import SetAside
from tts_assets.core.audio import read_wave

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "examples/corpora/asterisk_en"
CODEC = ROOT / "examples/codecs/announcer-16khz"
MINUTES, REPEATS = 20, 3
SHARD = 128  # clips, as in the demo
BUDGETS = (BATCH_TOKENS, 4000, 12_000)  # codes: the default, and what a GPU is given


def speech(seconds: float) -> list[Wave]:
    """So many seconds from the beginning of the corpus, at 16 kHz."""
    waves: list[Wave] = []
    for line in (CORPUS / "samples.jsonl").read_text().splitlines():
        if sum(map(len, waves)) >= seconds * 16_000:
            break
        waves.append(read_wave(CORPUS / json.loads(line)["wav_path"], 16_000))
    return waves


def as_listed(codec: Codec, waves: list[Wave], budget: int) -> tuple[list[Codes], float]:
    """Codes of consecutive clips in batches of at most ``budget`` codes; the padding fraction."""
    counts = [codec.codes(len(wave)) for wave in waves]
    codes: list[Codes] = []
    padded = 0
    while len(codes) < len(waves):
        size = 1
        longest = counts[len(codes)]
        for count in counts[len(codes) + 1 :]:
            longest = max(longest, count)
            if longest * (size + 1) > budget:
                break
            size += 1
        batch = range(len(codes), len(codes) + size)
        rows = codec.quantize(codec.latents([waves[row] for row in batch]))[0]
        padded += rows.size
        codes += [clip[: counts[row]] for row, clip in zip(batch, rows, strict=True)]
    return codes, 1 - sum(counts) / padded


def by_length(encoder: BatchEncoder, waves: list[Wave], budget: int) -> tuple[list[Codes], float]:
    """Codes in batches as ``codec_shards`` makes them, the longest clips of a shard first."""
    encoder.effort.clear()
    codes: dict[int, Codes] = {}
    for start in range(0, len(waves), SHARD):
        rows = range(start, min(start + SHARD, len(waves)))
        order = sorted(rows, key=lambda row: -len(waves[row]))
        for batch in encoder.batches(((row, waves[row]) for row in order), budget):
            codes.update((row, clip) for row, clip in batch if not isinstance(clip, SetAside))
    padding = 1 - encoder.effort["codes"] / encoder.effort["padded"]
    return [codes[row] for row in range(len(waves))], padding


def main() -> None:
    codec = Codec.load(CODEC)
    waves = speech(60 * MINUTES)
    encoder = BatchEncoder(codec)
    ways: dict[str, Callable[[], tuple[list[Codes], float]]] = {
        "one by one": lambda: (codec.encode(waves), 0.0)
    }
    for budget in BUDGETS:
        ways[f"as listed, {budget:,}"] = partial(as_listed, codec, waves, budget)
        ways[f"by length, {budget:,}"] = partial(by_length, encoder, waves, budget)
    times: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, tuple[list[Codes], float]] = {}
    for _ in range(REPEATS):
        for name, encode in ways.items():
            started = time.perf_counter()
            results[name] = encode()
            times[name].append(time.perf_counter() - started)
    alone = results["one by one"][0]
    for name in ways:
        if name.startswith("by length"):
            same = [np.array_equal(*pair) for pair in zip(alone, results[name][0], strict=True)]
            assert all(same), f"{name}: {same.count(False)} clips have other codes"
    seconds = sum(map(len, waves)) / 16_000
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads;")
    print(f"{len(waves)} clips, {seconds / 60:.1f} minutes, {sum(map(len, alone))} codes\n")
    print("| method, codes per batch | padding | s | x real time | as listed / this |")
    print("|---|---|---|---|---|")
    for name, taken in times.items():
        listed = times.get(name.replace("by length", "as listed"), taken)
        print(
            f"| {name} | {results[name][1]:.1%} | {min(taken):.1f} | {seconds / min(taken):.0f} "
            f"| {min(listed) / min(taken):.2f} |"
        )
    effort = encoder.effort
    print(f"\nEncoded again: {effort['again'] / effort['encoded']:.1%} of the clips; ", end="")
    print(f"largest difference by rounding {encoder.difference:.1e} levels.")


if __name__ == "__main__":
    main()
