"""Files of an engine's run folder, which trainer and engine both see."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

SECRET = "secret"  # what every request must bring; only its owner can read it
WEIGHTS = "weights.safetensors"
LABEL = "weights"  # in that file's metadata: which weights they are
LOG = "log.txt"


def write_secret(folder: Path) -> None:
    """A new secret in ``folder``, unless one is there: an engine that starts again keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SECRET
    if path.is_file():
        return
    aside = folder / f"{SECRET}.{os.getpid()}"
    aside.touch(mode=0o600)
    aside.write_text(secrets.token_hex(32))
    aside.replace(path)
