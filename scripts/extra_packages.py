#!/usr/bin/env python3
"""Print the packages of one extra of pyproject.toml, for pip.

    pip install $(python scripts/extra_packages.py docs)

`pip install .[docs]` would resolve all dependencies of the project again, beside the lock.
"""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"

if __name__ == "__main__":
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    print(*extras[sys.argv[1]])
