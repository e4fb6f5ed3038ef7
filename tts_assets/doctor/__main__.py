"""Look at the machine, say what is there and what is missing, what that costs, how to mend it.

    python -m tts_assets.doctor [--json]

Exit status: 0, or 1 where something is missing that the chosen profile needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tts_assets.doctor import libraries, machine
from tts_assets.doctor.machine import Finding, fine, missing

if TYPE_CHECKING:
    from tts_assets.settings import Settings

UI_PORT, SERVER_PORT = 3000, 8000


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tts_assets.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for machines")
    options = parser.parse_args(argv)
    findings = examine()
    if options.json:
        rows = [{**asdict(finding), "state": finding.state} for finding in findings]
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(describe(finding) for finding in findings))
        print(f"\n{verdict(findings)}")
    return int(any(finding.needed for finding in findings))


def examine() -> list[Finding]:
    """Every part once; each look is independent, and none changes anything."""
    project, settings = read_project()
    compute = settings.compute if settings else None
    asked = compute is not None and compute.launcher == "torchrun" and bool(compute.gpus)
    gpus = machine.gpus(needed=asked)
    slurm = compute is not None and compute.launcher == "slurm"
    return [
        machine.python(),
        project,
        libraries.torch(has_gpus=gpus.fine),
        gpus,
        libraries.vllm(
            settings.vllm.python if settings else None,
            checked=bool(settings and settings.sft and settings.serving.check_vllm),
        ),
        libraries.compiler(),
        libraries.audio(),
        machine.memory(),
        machine.cores(),
        machine.disk(settings.storage if settings else Path("storage").resolve()),
        machine.port(UI_PORT, "make ui", "make ui PORT=3001"),
        machine.port(SERVER_PORT, "the server", "give tts_assets.serving.server --port 8001"),
        libraries.slurm(compute.slurm.login if compute and slurm else (), needed=slurm),
        libraries.wandb(settings.wandb.mode if settings and settings.wandb else None),
        *libraries.alerts(settings.alerts.variables() if settings else ()),
    ]


def read_project() -> tuple[Finding, Settings | None]:
    """The project file, and its settings if it can be read."""
    try:
        from tts_assets.core.config import ConfigError
        from tts_assets.settings import load_settings, project_file
    except ModuleNotFoundError as error:
        found = f"no module {error.name!r}"
        return missing("project", found, "nothing runs", "make install", needed=True), None
    try:
        settings = load_settings()
    except (ConfigError, OSError) as error:
        return missing(
            *("project", str(error), "Dagster does not load, and nothing runs"),
            f"mend {project_file()}, or set TTS_PROJECT and TTS_PROFILE to what is there",
            needed=True,
        ), None
    return fine("project", f"{settings.project.name}, {project_file()}"), settings


def describe(finding: Finding) -> str:
    """One line; where something is missing two more, what it costs and what to type."""
    mark = "ok " if finding.fine else ("!! " if finding.needed else "-- ")
    line = f"{mark}{finding.name:13} {finding.found}"
    if finding.fine:
        return line
    more = [f"costs: {finding.cost}", f"mend:  {finding.remedy}"]
    return "\n".join([line, *(textwrap.indent(text, " " * 17) for text in more)])


def verdict(findings: list[Finding]) -> str:
    needed = [finding.name for finding in findings if finding.needed]
    lacking = sum(not finding.fine for finding in findings)
    if needed:
        return f"this profile does not run yet: {', '.join(needed)}"
    return f"this profile runs; {lacking} of {len(findings)} things are missing, none is needed"


if __name__ == "__main__":
    sys.exit(main())
