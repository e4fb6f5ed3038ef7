"""Merge 64 shards of 100 M codes: this project, concatenation in memory, and ``cat``.

    python benchmarks/merge_shards.py /a/folder/with/2/GB

makes the shards there (400,000 utterances of 5 s on average, with sample lines as in
``filtered_samples``). Each method merges them in turn, in a separate process, with all input in the
page cache. Prints a Markdown table of the shortest of ROUNDS.

* merge: ``tts_assets.arrays.merge``, which also assigns each sample to a split by its hash.
* concatenate: all shards of a split are loaded; ``np.concatenate`` joins the code arrays and the
  shifted indexes; the results are written as arrays. Sample lines are read into a list of strings
  and written one by one. Nothing is hashed, because the shards are split already. In the layout of
  the reference trainer (int32), as its merger does, and in that of this project (uint16).
* cat: ``cat shards/* > one file``, the bytes that merge reads.

Times in seconds exclude the start of the interpreter. They end when the files are written, and when
they are on the disk (fsync). Peak memory is the largest resident set of the process, including
Python and its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tts_assets.arrays.merge import merge
from tts_assets.core.accounting import ValidationSplit, held_out
from tts_assets.core.artifacts import ShardFacts, fsync
from tts_assets.corpora.samples import Sample

SHARDS, CODES, SAMPLES = 64, 100_000_000, 400_000
CODEBOOK = 65_536
ROUNDS = 7
SPLIT = ValidationSplit()
FACTS = {"corpus": "benchmark", "shards": SHARDS, "samples_in": SAMPLES, "samples": SAMPLES}
FACTS |= {"set_aside": 0, "codes": CODES, "hours": CODES / 50 / 3600, "codec": "benchmark"}
FACTS |= {"sample_rate": 16000, "token_rate": 50.0, "codebook_size": CODEBOOK}
TEXT = "For technical support, press three, or say what you would like to talk to us about."


def sample_line(number: int) -> bytes:
    """A line of 500 to 600 bytes with an id of 16 digits."""
    identity = f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}"
    text = TEXT[: 40 + number % 44]
    sample = Sample(
        id=identity,
        wav_path=f"/data/corpora/benchmark/audio/{number % 997:03}/{identity}.flac",
        transcript=text,
        language="en",
        duration=5.0,
        sample_rate=16000,
        speaker_id=f"speaker{number % 40}",
        dataset_name="benchmark",
        original_data={"licence": "CC0-1.0", "audio_sha256": identity * 4, "text": text},
    )
    return sample.to_line().encode()


def make_shards(folder: Path) -> None:
    """Write the shards in the layout of this project, and split in that of the reference."""
    random = np.random.default_rng(0)
    for name in ("shards", "int32", "uint16"):
        (folder / name).mkdir(parents=True)
    for number in range(SHARDS):
        size = SAMPLES // SHARDS
        cuts = np.sort(random.choice(CODES // SHARDS - 1, size - 1, replace=False)) + 1
        bounds = np.concatenate([[0], cuts, [CODES // SHARDS]])
        codes = random.integers(0, CODEBOOK, CODES // SHARDS, dtype=np.uint16)
        lines = [sample_line(number * size + row) for row in range(size)]
        name = folder / "shards" / f"shard-{number:05}"
        np.save(f"{name}.codes.npy", codes)
        np.save(f"{name}.index.npy", bounds[:-1])
        Path(f"{name}.samples.jsonl").write_bytes(b"".join(lines))
        held = held_out([line[8:24] for line in lines], SPLIT)
        for split, chosen in (("train", ~held), ("val", held)):
            lengths = np.diff(bounds)[chosen]
            own = codes[np.repeat(chosen, np.diff(bounds))]
            for dtype in ("int32", "uint16"):
                place = folder / dtype
                own.astype(dtype).tofile(place / f"{split}_codes_{number}.npy")
                np.save(place / f"{split}_codes_index_{number}.npy", np.cumsum(lengths) - lengths)
                with (place / f"{split}_samples_{number}.jsonl").open("wb") as stream:
                    stream.writelines(lines[row] for row in np.flatnonzero(chosen))


def merged(folder: Path, target: Path) -> None:
    """This project's way."""
    shards = SimpleNamespace(path=folder / "shards", facts=ShardFacts(**FACTS), asset="shards")
    merge(shards, SPLIT, target)


def concatenated(folder: Path, target: Path, dtype: str) -> None:
    """Everything in memory."""
    for split in ("train", "val"):
        codes, index, lines, before = [], [], [], 0
        for number in range(SHARDS):
            own = np.memmap(folder / dtype / f"{split}_codes_{number}.npy", dtype=dtype, mode="r")
            codes.append(own.copy())
            index.append(np.load(folder / dtype / f"{split}_codes_index_{number}.npy") + before)
            before += len(own)
            with (folder / dtype / f"{split}_samples_{number}.jsonl").open() as stream:
                lines += [line.rstrip("\n") for line in stream]
        joined = np.concatenate(codes)
        path = target / f"{split}_codes.npy"
        written = np.memmap(path, dtype=dtype, mode="w+", shape=joined.shape)
        written[:] = joined
        np.save(target / f"{split}_codes_index.npy", np.concatenate(index))
        with (target / f"{split}_samples.jsonl").open("w") as stream:
            for line in lines:
                stream.write(line + "\n")


def cat(folder: Path, target: Path) -> None:
    command = 'cat "$0"/* > "$1"'
    subprocess.run(["sh", "-c", command, folder / "shards", target / "all"], check=True)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "merge": merged,
    "concatenate, int32": lambda folder, target: concatenated(folder, target, "int32"),
    "concatenate, uint16": lambda folder, target: concatenated(folder, target, "uint16"),
    "cat": cat,
}


def work(way: str, folder: Path) -> None:
    """One run, in this process; prints its figures as JSON."""
    target = folder / "out"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    os.sync()
    started = time.perf_counter()
    WAYS[way](folder, target)
    written = time.perf_counter() - started
    for path in target.iterdir():
        fsync(path)
    durable = time.perf_counter() - started
    who = resource.RUSAGE_CHILDREN if way == "cat" else resource.RUSAGE_SELF
    usage = resource.getrusage(who)
    figures = {"written": written, "durable": durable, "megabytes": usage.ru_maxrss / 1024}
    print(json.dumps(figures | {"cpu": usage.ru_utime + usage.ru_stime}))


def run(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(folder), "--way", way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--way", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.way:
        work(arguments.way, arguments.folder)
        return
    if not (arguments.folder / "shards").is_dir():
        make_shards(arguments.folder)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS + 1):  # the first fills the page cache
        for way in WAYS:
            found[way].append(run(way, arguments.folder))
    best = {
        way: {key: min(run[key] for run in runs[1:]) for key in runs[0]}
        for way, runs in found.items()
    }
    print("| | written, s | on the disk, s | peak memory, MB |\n|---|---|---|---|")
    for way, figures in best.items():
        print(
            f"| {way} | {figures['written']:.2f} | {figures['durable']:.2f} "
            f"| {figures['megabytes']:.0f} |"
        )
    print("\n| merge against | written | on the disk | memory |\n|---|---|---|---|")
    for way in list(WAYS)[1:]:
        ratios = [best[way][key] / best["merge"][key] for key in ("written", "durable")]
        memory = best["merge"]["megabytes"] / best[way]["megabytes"]
        print(f"| {way} | {ratios[0]:.2f}x | {ratios[1]:.2f}x | {memory:.1%} |")


if __name__ == "__main__":
    main()
