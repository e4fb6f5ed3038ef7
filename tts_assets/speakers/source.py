"""Where an encoder lies, and what it is: without torch, so that definitions load fast."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tts_assets.artifacts import sha256_file
from tts_assets.config import ConfigError, digest_of
from tts_assets.speakers.config import RESEMBLYZER

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def resolve(name: str, root: Path) -> Path:
    """The folder or file that ``name`` means: below ``root``, or in the package resemblyzer."""
    if name != RESEMBLYZER:
        return root / name
    found = importlib.util.find_spec(RESEMBLYZER)
    assert found is not None and found.origin is not None
    return Path(found.origin).with_name("pretrained.pt")


def encoder_digest(path: Path) -> str:
    """What an encoder is, wherever it lies: the digest of its bytes."""
    files = [path] if path.is_file() else [path / WEIGHTS_FILE, path / CONFIG_FILE]
    check_exists(path)
    return digest_of([sha256_file(file) for file in files])


def check_exists(path: Path) -> None:
    complete = all((path / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE))
    if not path.is_file() and not complete:
        raise ConfigError(
            f"{path} is no speaker encoder: give a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, "
            f"a .pt of Resemblyzer or Real-Time-Voice-Cloning, or {RESEMBLYZER!r}"
        )
