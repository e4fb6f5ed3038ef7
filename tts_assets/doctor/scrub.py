"""Read every file of the storage, and report all damaged artifacts and what to do.

    python -m tts_assets.doctor.scrub [--asset sft/announcer]

Verification before the use of an artifact trusts the metadata of files that it has read once. This
command trusts nothing. The exit status is 1 if something is damaged. The job ``scrub`` does the
same.
"""

from __future__ import annotations

import argparse
import sys

from tts_assets.core.artifacts import ArtifactStore
from tts_assets.core.artifacts.scrub import scrub
from tts_assets.core.config import ConfigError
from tts_assets.settings import load_settings


def main(argv: list[str] | None = None) -> int:
    """Scrub the storage of the project file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tts_assets.doctor.scrub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--asset", default="", help="key of one asset, or the first parts of it")
    options = parser.parse_args(argv)
    try:
        store = ArtifactStore(load_settings().storage)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    found = scrub(store, options.asset)
    if found.problems:
        print(found.report)
    print(found.summary)
    return int(bool(found.problems))


if __name__ == "__main__":
    sys.exit(main())
