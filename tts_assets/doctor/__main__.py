"""Check the machine and the storage.

    python -m tts_assets.doctor [--json]
    python -m tts_assets.doctor scrub [--asset sft/announcer]
    python -m tts_assets.doctor prune [--days 30] [--versions 3] [--delete]
    python -m tts_assets.doctor gpu-hours

Without a command: what is installed, what is missing, its consequence and a remedy. The exit status
is 1 if a part is missing that the selected profile needs.

``scrub`` reads every file of the storage, and reports all damaged artifacts and what to do.
Verification before the use of an artifact trusts the metadata of files that it has read once; this
command trusts nothing. The exit status is 1 if something is damaged. The job ``scrub`` does the
same.

``prune`` lists old versions of artifacts that nothing refers to, and what their deletion frees;
``--delete`` deletes them. The defaults are those of ``[retention]``.

``gpu-hours`` prints the GPU-hours of this week by asset, the largest first, and their sum.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tts_assets.doctor import findings
from tts_assets.doctor.findings import Finding, fine, missing

if TYPE_CHECKING:
    from tts_assets.settings import Settings

UI_PORT, SERVER_PORT = 3000, 8000


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    commands = parser.add_subparsers(dest="command")
    scrubbing = commands.add_parser("scrub", help="read every file of the storage")
    scrubbing.add_argument("--asset", default="", help="key of one asset, or its first parts")
    pruning = commands.add_parser("prune", help="old versions of artifacts that nothing refers to")
    pruning.add_argument("--days", type=float, help="keep younger versions")
    pruning.add_argument("--versions", type=int, help="keep so many of each asset and partition")
    pruning.add_argument("--delete", action="store_true", help="delete them; otherwise list them")
    commands.add_parser("gpu-hours", help="GPU-hours of this week by asset")
    options = parser.parse_args(argv)
    if options.command is None:
        return check_machine(options.json)
    from tts_assets.core.config import ConfigError
    from tts_assets.settings import load_settings

    try:
        settings = load_settings()
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.command == "scrub":
        return scrub_storage(settings, options.asset)
    if options.command == "prune":
        asked = {"days": options.days, "versions": options.versions}
        given = {key: value for key, value in asked.items() if value is not None}
        return prune_storage(settings, given, options.delete)
    return print_gpu_hours(settings)


def check_machine(as_json: bool) -> int:
    """Print all findings. The exit status is 1 if a part is missing that the profile needs."""
    found = examine()
    if as_json:
        rows = [{**asdict(finding), "state": finding.state} for finding in found]
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(describe(finding) for finding in found))
        print(f"\n{summary(found)}")
    return int(any(finding.needed for finding in found))


def scrub_storage(settings: Settings, asset: str) -> int:
    """Read all artifacts of ``asset``; the exit status is 1 if one is damaged."""
    from tts_assets.core.artifacts import ArtifactStore
    from tts_assets.core.artifacts.verification import scrub

    found = scrub(ArtifactStore(settings.storage), asset)
    if found.problems:
        print(found.report)
    print(found.summary)
    return int(bool(found.problems))


def prune_storage(settings: Settings, asked: Mapping[str, float], delete: bool) -> int:
    """List or delete old versions; ``asked`` replaces values of ``[retention]``."""
    from tts_assets.core.artifacts import ArtifactError, ArtifactStore
    from tts_assets.core.artifacts.pruning import Retention, prune
    from tts_assets.core.config import ConfigError

    now = time.time()
    try:
        retention = Retention.parse({**settings.retention.model_dump(), **asked}, "options")
        found = prune(ArtifactStore(settings.storage), retention, now, delete)
    except (ArtifactError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    print(found.report(now))
    return 0


def print_gpu_hours(settings: Settings) -> int:
    """Print one line per asset, the largest first, and the sum."""
    from tts_assets.core.compute import LEDGER_FOLDER, Ledger

    limit = settings.budget.gpu_hours_a_week
    used = Ledger(settings.storage / LEDGER_FOLDER).used(datetime.now(UTC))
    for asset, hours in sorted(used.items(), key=lambda item: -item[1]):
        print(f"{hours:10.2f}  {asset}")
    of = "" if limit is None else f" of {limit:g}"
    print(f"{sum(used.values()):10.2f}{of} GPU-hours since Monday, 0:00 UTC")
    return 0


def examine() -> list[Finding]:
    """All findings. The checks are independent and change nothing."""
    project, settings = read_project()
    compute = settings.compute if settings else None
    asked = compute is not None and compute.launcher == "torchrun" and bool(compute.gpus)
    gpus = findings.gpus(needed=asked)
    slurm = compute is not None and compute.launcher == "slurm"
    return [
        findings.python(),
        findings.commands(Path(sys.executable).parent),
        project,
        findings.torch(has_gpus=gpus.fine),
        gpus,
        findings.vllm(
            settings.vllm.python if settings else None,
            checked=bool(settings and settings.sft and settings.serving.check_vllm),
        ),
        findings.compiler(),
        findings.audio(),
        findings.memory(),
        findings.cores(),
        findings.disk(settings.storage if settings else Path("storage").resolve()),
        *(findings.corpora(read_corpora(settings)) if settings else ()),
        findings.port(UI_PORT, "the UI", "tts-assets ui --port 3100"),
        findings.port(SERVER_PORT, "the server", "tts-assets serve --port 8001"),
        findings.slurm(compute.slurm.login if compute and slurm else (), needed=slurm),
        findings.wandb(settings.wandb.mode if settings and settings.wandb else None),
        *findings.alerts(settings.alerts.variables() if settings else ()),
    ]


def read_project() -> tuple[Finding, Settings | None]:
    """The finding of the project file, and its settings if they are valid."""
    try:
        from tts_assets.core.config import ConfigError
        from tts_assets.project_file import project_file
        from tts_assets.settings import load_settings
    except ModuleNotFoundError as error:
        found = f"no module {error.name!r}"
        return missing("project", found, "nothing runs", "make install", needed=True), None
    try:
        settings = load_settings()
    except (ConfigError, OSError) as error:
        return missing(
            *("project", str(error), "Dagster does not load"),
            f"correct {project_file()}, or set TTS_PROJECT or TTS_PROFILE to another one",
            needed=True,
        ), None
    return fine("project", f"{settings.project.name}, {project_file()}"), settings


def read_corpora(settings: Settings) -> dict[str, Path]:
    """The folders of the declared corpora that are read, not made from texts."""
    corpora = settings.all_corpora
    return {
        name: corpora(name).path
        for name, config in corpora.declared.items()
        if config.synthesis is None
    }


def describe(finding: Finding) -> str:
    """One line, and for a missing part two more: its consequence and the remedy."""
    mark = "ok " if finding.fine else ("!! " if finding.needed else "-- ")
    line = f"{mark}{finding.name:13} {finding.found}"
    if finding.fine:
        return line
    more = [f"affects: {finding.cost}", f"remedy:  {finding.remedy}"]
    return "\n".join([line, *(textwrap.indent(text, " " * 17) for text in more)])


def summary(found: list[Finding]) -> str:
    """One line: whether the selected profile runs."""
    needed = [finding.name for finding in found if finding.needed]
    lacking = sum(not finding.fine for finding in found)
    if needed:
        return f"this profile does not run yet: {', '.join(needed)}"
    return f"this profile runs; {lacking} of {len(found)} parts are missing, none is needed"


if __name__ == "__main__":
    sys.exit(main())
