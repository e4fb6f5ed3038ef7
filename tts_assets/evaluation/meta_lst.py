"""Seed-TTS-eval's ``meta.lst``: ``name|prompt text|prompt wav|text``, and a fifth field, the wav
of the text as a person said it, in the lists that have one.

Source: github.com/BytedanceSpeech/seed-tts-eval (Anastassiou et al., Seed-TTS, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tts_assets.config import ConfigError

FIELDS = ("id", "prompt_text", "prompt_wav", "text", "reference_wav")


def read_meta_lst(path: Path, lines: Sequence[str], language: str) -> dict[str, dict[str, str]]:
    """The texts of a list by where they stand, as rows of a suite; the language is the category.

    Raises :class:`ConfigError` for a line that has not four or five fields.
    """
    rows = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        fields = [field.strip() for field in line.split("|")]
        if len(fields) not in (4, 5) or not all(fields[:4]):
            raise ConfigError(
                f"{where}: {len(fields)} fields; write name|prompt text|prompt wav|text, and the "
                "wav of the text as a fifth where there is one"
            )
        given = {name: value for name, value in zip(FIELDS, fields, strict=False) if value}
        rows[where] = {"category": language, **given}
    return rows
