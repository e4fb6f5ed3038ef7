"""A tick of the sensor ``changed_corpora`` over unchanged files, against hashing their bytes.

    python benchmarks/sensor_tick.py [--files 100000] [--where FOLDER]

makes a corpus of that many clips of 4 kB (half a second at 16 kHz in g722, cut from the demo
corpus) in a temporary folder, and prints what a tick takes when nothing changed, when one file
did, and what it takes to read and hash them all, which is how a look would know without file
times. Real clips are longer, and hashing takes longer with them; a tick does not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, SensorDefinition, SensorResult, build_sensor_context

from sensors.corpora import build_corpora_sensors
from tts_assets.core.artifacts import ArtifactStore
from tts_assets.corpora.config import DiscoveryConfig
from tts_assets.corpora.discovery import Corpora
from tts_assets.corpora.watch import RecordedScan, Scan

SOURCE = Path(__file__).resolve().parents[1] / "examples/corpora/asterisk_en/audio"
CLIP_BYTES, FOLDER_FILES, REPEATS = 4000, 1000, 5
NAME = "many"


def lay_out(root: Path, files: int) -> None:
    """A plain folder corpus: clips and their words, FOLDER_FILES a folder."""
    speech = b"".join(path.read_bytes() for path in sorted(SOURCE.glob("*.g722")))
    for number in range(files // 2):
        folder = root / f"{2 * number // FOLDER_FILES:04}"
        folder.mkdir(parents=True, exist_ok=True)
        start = number * 37 % (len(speech) - CLIP_BYTES)
        (folder / f"{number:06}.g722").write_bytes(speech[start : start + CLIP_BYTES])
        (folder / f"{number:06}.txt").write_text("words")


def hash_all(root: Path) -> str:
    """The alternative: the digest of every file's name and bytes."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """The shortest of REPEATS, and the last result."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - started)
    return min(times), result


def tick(sensor: SensorDefinition, instance: DagsterInstance) -> SensorResult:
    with build_sensor_context(instance=instance) as context:
        result = sensor(context)
    assert isinstance(result, SensorResult)
    return result


def measure(folder: Path, files: int) -> None:
    corpora = Corpora({}, DiscoveryConfig(root=Path("corpora"), language="en"), folder)
    root, store = folder / "corpora" / NAME, ArtifactStore(folder / "storage")
    lay_out(root, files)
    scan = Scan.begin(corpora(NAME))
    scan.folder(root)
    RecordedScan(scan.digest).record(store, NAME)  # as raw_corpus does
    sensors = build_corpora_sensors(corpora, [], store.root)
    (sensor,) = (each for each in sensors if each.name == "changed_corpora")
    with DagsterInstance.ephemeral() as instance:
        quiet, result = seconds(lambda: tick(sensor, instance))
        assert not result.run_requests
        os.utime(next(root.rglob("*.g722")), (1, 1))
        busy, result = seconds(lambda: tick(sensor, instance))
        assert [request.partition_key for request in result.run_requests] == [NAME]
    hashing, _ = seconds(lambda: hash_all(root))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {files} files\n")
    print(f"| | seconds, shortest of {REPEATS} | against hashing |\n|---|---|---|")
    print(f"| a tick, nothing changed | {quiet:.2f} | {hashing / quiet:.1f}x faster |")
    print(f"| a tick, one file changed | {busy:.2f} | {hashing / busy:.1f}x faster |")
    print(f"| read and hash every file, from memory | {hashing:.2f} | 1 |")
    print(f"\ncursor: {len(result.cursor)} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--where", type=Path, help="a folder on the disk to measure")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*partitions_def.*")
    with tempfile.TemporaryDirectory(dir=arguments.where) as folder:
        measure(Path(folder), arguments.files)


if __name__ == "__main__":
    main()
