"""A suite that was said elsewhere: clips and a list of them, which a report scores as any other.

The interface between the reports and whatever speaks: a folder with ``spoken.jsonl`` and
``audio/``, FLAC of any rate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tts_assets.config import Config, ConfigError
from tts_assets.evaluation.suite import SuiteText

SPOKEN_FILE = "spoken.jsonl"
AUDIO_FOLDER = "audio"


class Saying(Config):
    """One text of the suite with one seed; ``audio``: its file in ``audio/``, none if nothing was
    said; ``ended``: by the model, and not by a limit."""

    id: str
    seed: int
    audio: str | None
    ended: bool = True


def clip_name(text: SuiteText, seed: int, temperature: float | None = None) -> str:
    return f"{text.id}-{seed}{'' if temperature is None else f'-t{temperature:g}'}.flac"


def write_sayings(folder: Path, sayings: Iterable[Saying]) -> None:
    lines = [json.dumps(saying.model_dump(), ensure_ascii=False) + "\n" for saying in sayings]
    (folder / SPOKEN_FILE).write_text("".join(lines))


def read_sayings(folder: Path) -> dict[tuple[str, int], Saying]:
    """By text and seed. Raises :class:`ConfigError` naming the line."""
    path = folder / SPOKEN_FILE
    lines = [line for line in path.read_text().split("\n") if line]
    rows = [Saying.parse(json.loads(line), f"{path}:{n}") for n, line in enumerate(lines, start=1)]
    return {(row.id, row.seed): row for row in rows}


def saying_of(sayings: dict[tuple[str, int], Saying], text: SuiteText, seed: int) -> Saying:
    try:
        return sayings[text.id, seed]
    except KeyError:
        raise ConfigError(
            f"the text {text.id!r} was not said with seed {seed}: have the suite said again"
        ) from None
