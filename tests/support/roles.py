"""Two small programs: one serves an answer over HTTP, the other requests it."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Literal

from tts_assets.core.program import ProgramConfig, Run, load_config

ADDRESS = (os.environ.get("TTS_SERVICE_HOST", ""), int(os.environ.get("TTS_SERVICE_PORT", "0")))
WHERE = os.environ.get("SLURMD_NODENAME") or os.environ.get("CUDA_VISIBLE_DEVICES")


class RoleConfig(ProgramConfig):
    """``serve`` answers until it is asked to stop; ``ask`` asks three times."""

    role: Literal["serve", "ask"]
    answer: str = ""


def serve(run: Run, answer: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

    with HTTPServer(ADDRESS, Handler) as server:
        server.timeout = 0.2
        print(f"serves on {WHERE}", flush=True)
        while not run.stop_requested:
            server.handle_request()


def ask() -> str:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://{ADDRESS[0]}:{ADDRESS[1]}", timeout=30) as reply:
                return reply.read().decode()
        except urllib.error.URLError:  # the service is not up yet
            time.sleep(0.2)
    raise TimeoutError("the service does not answer")


def main() -> None:
    config = load_config(RoleConfig)
    with Run(config.run_dir) as run:
        if config.role == "serve":
            serve(run, config.answer)
            return
        print(f"asks on {WHERE}", flush=True)
        run.finish({"answers": " ".join(ask() for _ in range(3))})


if __name__ == "__main__":
    main()
