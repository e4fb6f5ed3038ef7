"""The data path of codec training: drawing utterances, and waiting for windows.

    python benchmarks/codec_windows.py

*Drawing*: seconds to open a corpus of 1,000, 100,000 and 1,000,000 utterances, the memory that this
takes, and draws per second; for comparison, opening the corpus as one object per utterance. The
utterances exist in the list only.

*Waiting*: the share of a step of ``--step`` seconds that waits for its windows, with no and with
two processes that decode ahead, on the clips of the demo. The step sleeps, as a CPU does while a
GPU computes. Each row runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from tts_assets.codec.config import CodecRecipe
from tts_assets.codec.windows import TrainingAudio, WindowLoader
from tts_assets.core.accounting import ValidationSplit
from tts_assets.corpora.samples import located_samples

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpora" / "asterisk_en"
SIZES = (1_000, 100_000, 1_000_000)
T = TypeVar("T")
DRAWS, STEPS = 20_000, 60
RECIPE = CodecRecipe(corpora={"speech": 1.0}, batch_seconds=32, speeds=(0.9, 1.0, 1.1))


def write_list(path: Path, size: int) -> None:
    """A list of ``size`` utterances whose audio does not exist."""
    with path.open("w") as lines:
        for number in range(size):
            row = {
                "id": f"{number * 2654435761 % 2**64:016x}",
                "wav_path": f"/speech/{number // 1000:06d}/{number:09d}.flac",
                "transcript": "The words of an utterance of average length are here.",
                "language": "en",
                "duration": 3.0 + number % 70 / 10,
                "sample_rate": 24_000,
                "speaker_id": f"speaker-{number % 997}",
                "original_data": {"licence": "CC0-1.0"},
            }
            lines.write(json.dumps(row) + "\n")


def opened(size: int, open_list: Callable[[Path], T]) -> tuple[T, dict[str, float]]:
    """A list of ``size`` utterances, opened; the seconds and the memory in MB that it took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kept.jsonl"
        write_list(path, size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        found = open_list(path)
        seconds = time.perf_counter() - started
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return found, {"opened": seconds, "memory": memory}


def drawing(size: int) -> dict[str, float]:
    """Seconds to open a list, memory in MB, and draws per second."""
    split = ValidationSplit(fraction=0.001)
    audio, cost = opened(size, lambda path: TrainingAudio({"speech": path}, RECIPE, split))
    generator = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(DRAWS):
        audio.draw(generator)
    return {
        **cost,
        "table": audio.train.estimated_size("mb"),
        "draws": DRAWS / (time.perf_counter() - started),
    }


def objects(size: int) -> dict[str, float]:
    """Seconds and memory in MB of a list of :class:`Sample` objects."""
    samples, cost = opened(size, lambda path: list(located_samples(path)))
    assert len(samples) == size
    return cost


def waiting(workers: int, step_seconds: float) -> dict[str, float]:
    """The share of a step that waits for its windows, after the first ten."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kept.jsonl"
        rows = [json.loads(line) for line in (CORPUS / "samples.jsonl").read_text().splitlines()]
        named = [row | {"id": row["wav_path"]} for row in rows]
        lines = [json.dumps(row | {"wav_path": str(CORPUS / row["wav_path"])}) for row in named]
        path.write_text("\n".join(lines) + "\n")
        audio = TrainingAudio({"speech": path}, RECIPE, ValidationSplit())
    audio.cache.limit = 0  # a large corpus: every utterance is decoded
    ahead = WindowLoader(audio, STEPS, 0, 1, workers=workers)
    waits = []
    for step in range(STEPS):
        started = time.perf_counter()
        ahead.at(step)
        waits.append(time.perf_counter() - started)
        time.sleep(step_seconds)
    waited = sum(waits[10:])
    return {"share": waited / (waited + step_seconds * (STEPS - 10))}


def alone(*arguments: str) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step", type=float, default=0.3, help="seconds of a step")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--objects", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.size is not None:
        print(json.dumps(drawing(options.size)))
        return
    if options.objects is not None:
        print(json.dumps(objects(options.objects)))
        return
    if options.workers is not None:
        print(json.dumps(waiting(options.workers, options.step)))
        return
    print("| utterances | open, s | peak, MB | table, MB | draws/s | as objects: s | peak, MB |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        found, old = alone("--size", str(size)), alone("--objects", str(size))
        print(
            f"| {size:,} | {found['opened']:.2f} | {found['memory']:.0f} | {found['table']:.1f} | "
            f"{found['draws']:,.0f} | {old['opened']:.2f} | {old['memory']:.0f} |"
        )
    print(f"\n| processes | share of a step of {options.step} s that waits |\n|---|---|")
    for workers in (0, 2):
        share = alone("--workers", str(workers), "--step", str(options.step))["share"]
        print(f"| {workers} | {share:.1%} |")


if __name__ == "__main__":
    main()
