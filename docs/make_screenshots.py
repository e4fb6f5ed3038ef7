#!/usr/bin/env python3
"""Take screenshots of the UI after ``make demo``: the graph, an asset, a run and a report.

    PYTHONPATH=. python docs/make_screenshots.py [--out docs/images] [--only graph]

The script starts a read-only webserver on DAGSTER_HOME and a headless Chromium. It changes nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster import AssetKey, DagsterInstance

from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.processes import LOOPBACK, free_port
from tts_assets.evaluation.results import REPORT_PAGE
from tts_assets.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "announcer"
LAST = "promoted/announcer"  # all other assets are upstream of it
START_SECONDS = 120.0
LOADING_MS = 30_000  # Chromium's virtual time, which does not advance while a request is pending


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--only", help="one of graph, asset, run and report")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    report = ArtifactStore(load_settings().storage).current(f"report/{RECIPE}")
    with webserver() as url:
        upstream = "view=lineage&lineageScope=upstream&lineageDepth=20"
        pages = {
            "graph": (f"{url}/assets/{LAST}?{upstream}", "3400,1300"),
            "asset": (f"{url}/assets/sft/{RECIPE}?view=overview", "1600,3000"),
            "run": (f"{url}/runs/{run_of(RECIPE)}", "1600,1000"),
            "report": ((report.path / REPORT_PAGE).as_uri(), "1200,1400"),
        }
        for name, (address, size) in pages.items():
            if options.only not in (None, name):
                continue
            take_screenshot(address, out / f"{name}.png", size)
            print(f"{out / name}.png  {address}", flush=True)


def run_of(recipe: str) -> str:
    """The id of the run that made the checkpoint of ``recipe``."""
    with DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(AssetKey(["sft", recipe]))
    if event is None:
        sys.exit(f"sft/{recipe} was not made in this DAGSTER_HOME: run make demo first")
    return event.run_id


@contextmanager
def webserver() -> Iterator[str]:
    """The URL of a webserver that runs inside the ``with`` block."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    program = Path(sys.executable).with_name("dagster-webserver")
    where = ("--host", LOOPBACK, "--port", str(port), "--read-only", "-w", "workspace.yaml")
    process = subprocess.Popen([program, *where], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_for(f"{url}/server_info")
        yield url
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str) -> None:
    """Wait until ``url`` answers; exit with a message after START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    sys.exit(f"{url} does not answer after {START_SECONDS:g} s")


def take_screenshot(address: str, path: Path, size: str) -> None:
    """Save the page at ``address`` as a PNG of ``size`` ("width,height" in pixels)."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no chromium: apt-get install chromium")
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *(chromium, "--headless", *sandbox, "--disable-gpu", "--hide-scrollbars"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            f"--user-data-dir={profile}",
            f"--window-size={size}",
            f"--virtual-time-budget={LOADING_MS}",
            f"--screenshot={path}",
            address,
        ]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=300)


if __name__ == "__main__":
    main()
