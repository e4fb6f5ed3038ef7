"""What ``dagster_project.toml`` may say of texts."""

from __future__ import annotations

from pathlib import Path

from tts_assets.config import Config


class TextSource(Config):
    """``[texts.<name>]``: a JSONL file (also ``.jsonl.gz``) of the forms in ``texts/lines.py``."""

    path: Path
    licence: str = "unknown"
