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
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tts_assets.doctor.findings import check_machine

if TYPE_CHECKING:
    from tts_assets.settings import Settings


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


def scrub_storage(settings: Settings, asset: str) -> int:
    """Read all artifacts of ``asset``; the exit status is 1 if one is damaged."""
    from tts_assets.core.artifacts import ArtifactStore
    from tts_assets.core.artifacts.verification import scrub

    found = scrub(ArtifactStore(settings.storage), asset)
    if found.problems:
        print(found.report)
    print(found.summary)
    return int(bool(found.problems))


def prune_storage(
    settings: Settings, asked: Mapping[str, float], delete: bool, as_json: bool = False
) -> int:
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
    if as_json:
        versions = [{"version": one.name, "bytes": size} for one, size in found.versions]
        print(json.dumps({"deleted": found.deleted, "versions": versions}, indent=2))
    else:
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


if __name__ == "__main__":
    sys.exit(main())
