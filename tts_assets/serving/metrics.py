"""What Prometheus may know of a server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "tts_requests", "Requests that were spoken", ["format"], registry=registry
        )
        self.refused = Counter("tts_refused", "Requests beyond the limit (429)", registry=registry)
        self.busy = Gauge("tts_busy", "Requests being served", registry=registry)
        self.audio = Counter("tts_audio_seconds", "Seconds of speech", registry=registry)
        self.duration = Histogram(
            "tts_request_seconds", "Request to last byte", registry=registry, buckets=SECONDS
        )
        self.first_audio = Histogram(
            "tts_first_audio_seconds", "Request to first chunk", registry=registry, buckets=SECONDS
        )
        self.faults = Gauge(
            "tts_faulty_completions",
            "Completions that were silent, looped or did not end",
            ["fault"],
            registry=registry,
        )

    def spoken(self, wanted: str, started: float, seconds: float) -> None:
        """A request that began at ``started`` has got ``seconds`` of audio."""
        self.requests.labels(wanted).inc()
        self.audio.inc(seconds)
        self.duration.observe(time.perf_counter() - started)

    def text(self, faults: Mapping[Any, int]) -> bytes:
        """The exposition format."""
        for fault, number in faults.items():
            self.faults.labels(fault).set(number)
        return generate_latest(self.registry)
