"""Runs every stage on one GPU with random weights, and prints speeds and checks as a table.

    make gpu-proof                                    # on a GPU: about 9 minutes
    python benchmarks/gpu_proof.py --tiny             # the same code with tiny sizes, on any CPU
    python benchmarks/gpu_proof.py --only sft codec

Needs no network and no data but the repository. Each section is a process of its own with a time
limit: a section that fails says why, and the others go on. ``--out`` also writes the results as
``gpu_proof.json``. The sections are in ``gpu_sections.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_sections import SECTIONS, Machine, Row

LIMIT_SECONDS = 540.0  # of all sections together
LAST_LINES = 3  # of the error output of a section that failed


@dataclass(frozen=True)
class Outcome:
    """A section: its rows, or the reason why it has none."""

    section: str
    seconds: float
    rows: list[dict[str, Any]]
    failure: str = ""


def main() -> None:
    """Run the sections and print the table; with ``--section``, run one in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU and for tests")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=sorted(SECTIONS), help="these sections")
    parser.add_argument("--out", type=Path, help="folder for gpu_proof.json")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds in total")
    parser.add_argument("--section", choices=sorted(SECTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    machine = Machine(options.device, options.tiny)
    if options.device == "cpu" and not options.tiny:
        sys.exit("the full sizes need a GPU: use --tiny on a CPU")
    if options.section:
        print(json.dumps([asdict(row) for row in SECTIONS[options.section](machine)]))
        return
    outcomes = []
    ends = time.monotonic() + options.limit
    for name in options.only or SECTIONS:
        outcomes.append(run_section(name, machine, ends - time.monotonic()))
        print(table([outcomes[-1]], head=len(outcomes) == 1), flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        values = [asdict(outcome) for outcome in outcomes]
        (options.out / "gpu_proof.json").write_text(json.dumps(values, indent=1) + "\n")
    failed = [outcome.section for outcome in outcomes if outcome.failure]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run_section(name: str, machine: Machine, seconds: float) -> Outcome:
    """Run a section in its own process, for at most ``seconds``."""
    command = [sys.executable, __file__, "--section", name, "--device", machine.device]
    started = time.monotonic()
    if seconds <= 0:
        return Outcome(name, 0.0, [], "not run: the time is spent")
    try:
        done = subprocess.run(
            [*command, *(["--tiny"] if machine.tiny else [])],
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Outcome(name, seconds, [], f"ended after {seconds:.0f} s: the time is spent")
    elapsed = time.monotonic() - started
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Outcome(name, elapsed, [], " / ".join(lines[-LAST_LINES:]))
    return Outcome(name, elapsed, json.loads(done.stdout.splitlines()[-1]))


def table(outcomes: list[Outcome], head: bool) -> str:
    """Rows of a Markdown table, with its head if asked for."""
    lines = ["| section | what | value | |", "|---|---|---|---|"] if head else []
    for outcome in outcomes:
        for row in (Row(**values) for values in outcome.rows):
            lines.append(f"| {outcome.section} | {row.what} | {row.shown} | {row.note} |")
        if outcome.failure:
            lines.append(f"| {outcome.section} | failed | | {outcome.failure} |")
        lines.append(f"| {outcome.section} | time of the section | {outcome.seconds:.0f} s | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
