#!/usr/bin/env python3
"""Print the version, or raise it: version.py [patch|minor|major]."""

from __future__ import annotations

import re
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "tts_assets" / "__init__.py"
PARTS = ("major", "minor", "patch")
PATTERN = re.compile(r'__version__ = "(\d+)\.(\d+)\.(\d+)"')


def main(arguments: list[str]) -> None:
    text = FILE.read_text()
    match = PATTERN.search(text)
    if match is None or len(arguments) > 1 or not set(arguments) <= set(PARTS):
        sys.exit(f"usage: version.py [{'|'.join(PARTS)}]; the version is in {FILE}")
    numbers = [int(number) for number in match.groups()]
    if arguments:
        part = PARTS.index(arguments[0])
        numbers = [*numbers[:part], numbers[part] + 1, *[0] * (2 - part)]
        version = ".".join(map(str, numbers))
        FILE.write_text(PATTERN.sub(f'__version__ = "{version}"', text))
    print(".".join(map(str, numbers)))


if __name__ == "__main__":
    main(sys.argv[1:])
