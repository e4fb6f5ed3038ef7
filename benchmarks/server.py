"""Measures the server: real-time factor and latency of the first audio at 1, 4 and 16 streams.

    python benchmarks/server.py --model storage/serving/announcer/all/current

Starts the server of a serving model (``make demo`` creates one). Each client requests streamed pcm,
one request after another. The table has for each number of clients

* first audio: seconds from the request to the first bytes, median and 95th percentile;
* RTF: real-time factor of a stream, the time to the last byte divided by the seconds of audio;
  median and largest. Below 1 playback never stops;
* speech: seconds of audio per second, of all streams together.

For comparison, one client also requests the same texts and seeds as whole ``wav`` files. Nothing
else should run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from resources.vllm_server import VllmServer

PCM_BYTES_A_SECOND = 2 * 24_000
STREAMS = (1, 4, 16)
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class Measurement:
    """One request: seconds to the first and to the last byte, and seconds of audio."""

    first: float
    last: float
    audio: float


def text_of(number: int) -> str:
    """Six digits that depend on ``number``."""
    return " ".join(WORDS[int(digit)] for digit in f"{(number * 7919 + 104729) % 10**6:06d}")


def request_speech(client: httpx.Client, model: str, number: int, form: str) -> Measurement:
    """Send one request and measure it. ``form`` is ``pcm`` (streamed) or ``wav`` (whole)."""
    body = {"model": model, "voice": "default", "input": text_of(number), "seed": number}
    started = time.perf_counter()
    first, size = 0.0, 0
    with client.stream("POST", "/v1/audio/speech", json=body | {"response_format": form}) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            first = first or time.perf_counter() - started
            size += len(chunk)
    rate = PCM_BYTES_A_SECOND if form == "pcm" else 2 * 16_000
    return Measurement(first, time.perf_counter() - started, size / rate)


def measure(
    client: httpx.Client, model: str, streams: int, requests: int, form: str = "pcm"
) -> list[Measurement]:
    """Measure ``requests`` requests of ``streams`` concurrent clients."""
    with ThreadPoolExecutor(streams) as pool:
        return list(
            pool.map(lambda number: request_speech(client, model, number, form), range(requests))
        )


def row(name: str, measurements: Sequence[Measurement], wall: float) -> str:
    """A row of the table. ``wall``: seconds that all requests took together."""
    firsts = sorted(each.first for each in measurements)
    factors = sorted(each.last / each.audio for each in measurements)
    tail = firsts[min(len(firsts) - 1, round(0.95 * len(firsts)))]
    audio = sum(each.audio for each in measurements)
    return (
        f"| {name} | {len(measurements)} | {audio:.0f} | {statistics.median(firsts):.2f} | "
        f"{tail:.2f} | {statistics.median(factors):.2f} | {factors[-1]:.2f} | {audio / wall:.1f} |"
    )


def main() -> None:
    """Start the server and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a serving model")
    parser.add_argument(
        "--requests", type=int, default=32, help="requests for each number of streams"
    )
    options = parser.parse_args()
    log: list[str] = []
    started = time.perf_counter()
    with (
        VllmServer(restarts=0).serve(["--model", str(options.model)], log.append) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        print(f"ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)
        model = client.get("/v1/models").json()["data"][0]["id"]
        measure(client, model, 4, 8)  # warm-up: the first steps select kernels
        print("| streams | requests | s of audio | first audio | 95% | RTF | largest | speech |")
        print("|---|---|---|---|---|---|---|---|")
        for streams, form in [(1, "wav"), *((streams, "pcm") for streams in STREAMS)]:
            began = time.perf_counter()
            measurements = measure(client, model, streams, options.requests, form)
            name = f"{streams}" if form == "pcm" else f"{streams}, whole"
            print(row(name, measurements, time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
