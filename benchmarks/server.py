"""The server's real-time factor and first-audio latency at 1, 4 and 16 streams at once.

    python benchmarks/server.py --model storage/serving/announcer/all/current

Starts the server of the serving model (``make demo`` leaves one), lets so many clients at once ask
for streamed pcm, one request after the other, and tells for each number of clients

* first audio: from the request to the first bytes, median and 95th percentile, in seconds;
* real-time factor of a stream: from the request to the last bytes, by the seconds of audio; below 1
  a listener never waits. Median and largest;
* speech: seconds of audio that all streams together get in a second.

The same texts and seeds are asked for whole (``wav``) at one stream: what waiting for the last
token costs the listener. Nothing else should run beside it.
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
class Heard:
    """One request: seconds to the first and to the last byte, and seconds of audio."""

    first: float
    last: float
    audio: float


def text_of(number: int) -> str:
    """Six digits that depend on ``number``."""
    return " ".join(WORDS[int(digit)] for digit in f"{(number * 7919 + 104729) % 10**6:06d}")


def ask(client: httpx.Client, model: str, number: int, form: str) -> Heard:
    body = {"model": model, "voice": "default", "input": text_of(number), "seed": number}
    started = time.perf_counter()
    first, size = 0.0, 0
    with client.stream("POST", "/v1/audio/speech", json=body | {"response_format": form}) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_bytes():
            first = first or time.perf_counter() - started
            size += len(chunk)
    rate = PCM_BYTES_A_SECOND if form == "pcm" else 2 * 16_000
    return Heard(first, time.perf_counter() - started, size / rate)


def measure(
    client: httpx.Client, model: str, streams: int, requests: int, form: str = "pcm"
) -> list[Heard]:
    with ThreadPoolExecutor(streams) as pool:
        return list(pool.map(lambda number: ask(client, model, number, form), range(requests)))


def row(name: str, heard: Sequence[Heard], wall: float) -> str:
    firsts = sorted(each.first for each in heard)
    factors = sorted(each.last / each.audio for each in heard)
    tail = firsts[min(len(firsts) - 1, round(0.95 * len(firsts)))]
    audio = sum(each.audio for each in heard)
    return (
        f"| {name} | {len(heard)} | {audio:.0f} | {statistics.median(firsts):.2f} | {tail:.2f} | "
        f"{statistics.median(factors):.2f} | {factors[-1]:.2f} | {audio / wall:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a serving model")
    parser.add_argument("--requests", type=int, default=32, help="at each number of streams")
    options = parser.parse_args()
    log: list[str] = []
    started = time.perf_counter()
    with (
        VllmServer(restarts=0).serve(["--model", str(options.model)], log.append) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        print(f"ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)
        model = client.get("/v1/models").json()["data"][0]["id"]
        measure(client, model, 4, 8)  # warm: the first steps choose kernels
        print("| streams | requests | s of audio | first audio | 95% | RTF | largest | speech |")
        print("|---|---|---|---|---|---|---|---|")
        for streams, form in [(1, "wav"), *((streams, "pcm") for streams in STREAMS)]:
            begun = time.perf_counter()
            heard = measure(client, model, streams, options.requests, form)
            name = f"{streams}" if form == "pcm" else f"{streams}, whole"
            print(row(name, heard, time.perf_counter() - begun), flush=True)


if __name__ == "__main__":
    main()
